"""How fast this code is against the plain way of doing the same: what the README's speed table shows.

Both sides of a row get the same inputs, are warmed up and take turns in one process; a row gives the median of each, the
ratio of the medians and the smallest and largest ratio of a turn. The plain sides are written as public code does it: the
supernet edge by edge in the default memory format, with all gradients in both steps; pretext tasks sample by sample in
numpy and scipy; photos through torchvision's ImageFolder.

    python benchmark.py             # everything, some 20 minutes on two cores
    python benchmark.py --quick     # fewer turns and smaller cases, two minutes
    python benchmark.py --only supernet --json results/speed.json
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import data
import errors
import files
import genotypes
import model_eval
import model_search
import pretext
import utils

sys.path.append(str(Path(__file__).parent / "tests"))
from edge_supernet import EdgeSupernet, copy_weights  # noqa: E402


def take_turns(ours, plain, turns, warmup=2):
    """[seconds] of both functions."""
    times = ([], [])
    for turn in range(warmup + turns):
        for side, seconds in zip((ours, plain), times):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds.append(time.perf_counter() - start)
    return times


def row(name, times, target, unit="ms", scale=1e3):
    """Of a pair of lists of seconds; the plain side may be missing."""
    ours, plain = ([scale * t for t in side] for side in times)
    result = {"name": name, "unit": unit, "ours": statistics.median(ours), "target": target}
    if plain:
        ratios = [p / o for p, o in zip(plain, ours)]
        result |= {"plain": statistics.median(plain), "ratio": result["ours"] and statistics.median(plain) / result["ours"],
                   "spread": [min(ratios), max(ratios)]}  # fmt: skip
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The bilevel step of a search


TEN_CLASSES = SimpleNamespace(in_channels=3, reductions=2, head=lambda C: pretext.PooledHead(C, 10))
CASES = {
    "CIFAR stem, 32 px, batch 16, width 16, 8 cells": dict(stem="cifar", size=32, batch=16, width=16, layers=8),
    "ImageNet stem, 224 px, batch 4, width 16, 8 cells": dict(stem="imagenet", size=224, batch=4, width=16, layers=8),
}


def search_steps(stem, size, batch, width, layers, device):
    """(our step, the plain step): each call does the next bilevel step and returns its two losses."""
    utils.seed_everything(0)
    ours = model_search.Supernet(width, layers, stem, TEN_CLASSES)
    plain = EdgeSupernet(width, layers, stem, TEN_CLASSES)
    copy_weights(ours, plain)
    images = torch.randn(5, 2, batch, 3, size, size, device=device)
    labels = torch.randint(0, 10, (5, 2, batch), device=device)
    alphas = model_search.init_alphas(device)
    criterion = torch.nn.CrossEntropyLoss()

    def make(network, layout, lean):
        network = network.to(device, memory_format=layout)
        own_alphas = alphas.detach().clone().requires_grad_()
        w_optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        alpha_optimizer = torch.optim.Adam([own_alphas], 3e-4, (0.5, 0.999), weight_decay=1e-3)
        batches = itertools.cycle(zip(images, labels))

        def step():
            (x, alpha_x), (y, alpha_y) = next(batches)
            network.requires_grad_(not lean)
            alpha_loss = criterion(network(alpha_x, own_alphas), alpha_y)
            alpha_optimizer.zero_grad()
            alpha_loss.backward()
            alpha_optimizer.step()
            network.requires_grad_(True)
            loss = criterion(network(x, own_alphas.detach() if lean else own_alphas), y)
            w_optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
            w_optimizer.step()
            return torch.stack([loss, alpha_loss]).detach()

        return step

    return make(ours, torch.channels_last, lean=True), make(plain, torch.contiguous_format, lean=False)


def peak_of(side, case):
    """MiB by which two steps raise the memory of a process; called in one of its own."""

    def peak():  # not of getrusage, where a process inherits its parent's
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    step = search_steps(**case, device="cpu")[side]
    before = peak()
    step(), step()
    return peak() - before


def supernet(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, case in CASES.items():
        if device == "cuda":
            case, name = case | {"batch": 64}, re.sub("batch [0-9]+", "batch 64", name)
        for dtype, target in ((torch.float64, ""), (torch.float32, "<= 1e-4")):
            torch.set_default_dtype(dtype)
            ours, plain = search_steps(**case, device=device)
            differences = [(ours() - plain()).abs().max().item() for _ in range(1 if args.quick else 5)]
            yield {"name": f"largest difference of the losses over {len(differences)} steps, {dtype}", "unit": "",
                   "ours": max(differences), "target": target}  # fmt: skip
        times = take_turns(ours, plain, args.turns, warmup=0)
        yield row(f"search step, {name}", times, ">= 2.5x" if case["stem"] == "cifar" else ">= 2.0x")
        del ours, plain
        if device == "cpu":
            with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
                ours, plain = (pool.submit(peak_of, side, case).result() for side in (0, 1))
            yield {"name": f"peak memory, {name}", "unit": "MiB", "ours": ours, "plain": plain, "ratio": ours / plain,
                   "target": "<= 0.7x"}  # fmt: skip


def growth(args):
    """Our step against batch size, width, cells and image size, each doubled."""
    base = dict(stem="cifar", size=16, batch=16, width=8, layers=4)
    for name, work in (("batch", 1), ("width", 2), ("layers", 1), ("size", 2)):
        seconds = []
        for factor in (1, 2) if args.quick else (1, 2, 4):
            step, _ = search_steps(**base | {name: factor * base[name]}, device="cpu")
            seconds.append(statistics.median(take_turns(step, lambda: None, args.turns)[0]))
        text = ", ".join(f"{s / seconds[0]:.2f}x" for s in seconds)
        yield {"name": f"search step with {name} of {base[name]}, and 1, 2, 4 times that", "unit": "ms",
               "ours": 1e3 * seconds[0], "growth": text, "target": f"<= 1, {2**work}, {4**work}"}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Pretext tasks, one thread, per image


def plain_col():
    from scipy.spatial import cKDTree

    tree = cKDTree(np.array(pretext.BINS))
    matrix, white = np.array(pretext.RGB_TO_XYZ).T, np.array(pretext.WHITE)

    def one(image):  # uint8 (H, W, 3)
        rgb = image / 255
        xyz = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92) @ matrix / white
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lightness = (116 * f[..., 1] - 16).astype(np.float32)
        ab = np.stack([500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
        return lightness[None], tree.query(ab.reshape(-1, 2))[1].reshape(image.shape[:2])

    return one


def plain_rot():
    mean, std = np.array(data.ImageSet.mean, np.float32), np.array(data.ImageSet.std, np.float32)

    def one(image):
        x = (image[:, :: np.random.choice((-1, 1))].astype(np.float32) / 255 - mean) / std
        views = [np.rot90(x, k).transpose(2, 0, 1).copy() for k in range(4)]
        return np.stack(views), np.arange(4)

    return one


def plain_jig(grid, size):
    patch, perms = size // grid, pretext.permutations(grid)
    tile = int(0.76 * patch)

    def one(image):
        x = image[:, :: np.random.choice((-1, 1))].astype(np.float32) / 255
        if np.random.rand() < 0.3:
            x = np.repeat((x @ np.array([0.2125, 0.7154, 0.0721], np.float32))[..., None], 3, -1)
        target, tiles = np.random.randint(len(perms)), np.empty((grid * grid, 3, tile, tile), np.float32)
        for k in range(grid * grid):
            top, left = np.random.randint(0, patch - tile + 1, 2) + patch * np.array([k // grid, k % grid])
            part = x[top : top + tile, left : left + tile]
            tiles[perms[target, k]] = ((part - part.mean()) / part.std()).transpose(2, 0, 1)
        return tiles, target

    return one


def tasks(args):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # size, batch (the paper's, on each of 8 GPUs and on CIFAR-10), target in ms
    cases = [("col", 224, 8, 0.4), ("rot", 224, 4, 0.8), ("jig", 255, 4, 0.8)]
    cases += [("col", 32, 128, 0.02), ("rot", 32, 32, 0.01), ("jig", 32, 32, 0.02)]
    for name, size, batch, target in cases:
        images = torch.from_numpy(np.stack([photo(size, size, seed) for seed in range(batch)]))
        of = data.ImageSet(images)
        of.padded_crops, of.jitter = size == 32, 0.0
        task = pretext.make_task(name, of, size, "cifar" if size == 32 else "imagenet", 2, "cpu")
        one = plain_col() if name == "col" else plain_rot() if name == "rot" else plain_jig(task.grid, size)
        batched, index, arrays = images.permute(0, 3, 1, 2), torch.arange(batch), images[:4].numpy()
        times = take_turns(
            lambda: task.prepare(batched, None, index, train=True),  # noqa: B023
            lambda: [one(image) for image in arrays],  # noqa: B023
            4 * args.turns,
        )
        times = [t / batch for t in times[0]], [t / len(arrays) for t in times[1]]
        yield row(f"{name} at {size} px, per image, one thread", times, f"<= {target} ms")
    torch.set_num_threads(threads)


def photo(height, width, seed=0):
    """Something with edges and texture at all scales, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for k in range(3, 9):
        noise = Image.fromarray(rng.integers(0, 256, (2**k, 2**k, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) * 0.6 ** (k - 2)
    gray = image.mean(2, keepdims=True)  # the channels of photos go together
    return (gray + 0.3 * (image - gray)).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# A training step; photos; processes; an index


def training(args):
    train, _ = data.load("shapes", limit=640)
    task = pretext.make_task("cls", train, 32, "cifar", 8, "cpu")
    steps = []
    for layout in (torch.channels_last, torch.contiguous_format):
        utils.seed_everything(0)
        network = model_eval.Network(genotypes.load_arch("darts_v2"), 16, 8, "cifar", task).to(memory_format=layout)
        optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9)
        x, y = task.prepare(*next(data.batches(train, task, 64, "cpu", seed=0)), train=True)
        x = x.contiguous(memory_format=layout)

        def step(network=network, optimizer=optimizer, x=x, y=y):
            loss = task.loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        steps.append(step)
    times = take_turns(*steps, args.turns)
    yield row("training step, darts_v2, width 16, 8 cells, batch 64; default memory format", times, ">= 1.3x")
    batches = data.batches(train, task, 64, "cpu", seed=0)
    loading = take_turns(lambda: task.prepare(*next(batches), train=True), lambda: None, 6)[0]
    share = statistics.median(loading) / (statistics.median(loading) + statistics.median(times[0]))
    yield {"name": "data and pretext task in that step", "unit": "%", "ours": 100 * share, "target": "<= 3 %"}


def amp(args):
    """A short training in 16 bits against one in 32, as --amp does it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, _ = data.load("shapes", limit=640)
    task = pretext.make_task("cls", train, 32, "cifar", 4, device)
    losses, times = {}, {}
    for kind in (None, "bf16", "fp16") if device.type == "cuda" else (None, "bf16"):
        utils.seed_everything(0)
        network = model_eval.Network(genotypes.load_arch("darts_v2"), 16, 4, "cifar", task)
        network = network.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9)
        autocast, scaler = utils.precision(device, kind)
        start, losses[kind] = time.perf_counter(), []
        for epoch in range(1 if args.quick else 4):
            for batch in data.batches(train, task, 32, device, seed=epoch):
                x, y = task.prepare(*batch, train=False)
                with autocast:
                    loss = task.loss(network(x), y)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                losses[kind].append(loss.item())
        times[kind] = (time.perf_counter() - start) / len(losses[kind])
        if kind:
            last = (statistics.mean(losses[k][-20:]) for k in (kind, None))
            yield {"name": "a training in {}: loss of its last 20 of {} steps {:.4f}, in fp32 {:.4f}; a step".format(
                       kind, len(losses[kind]), *last), "unit": "ms", "ours": 1e3 * times[kind], "plain": 1e3 * times[None],
                   "ratio": times[None] / times[kind], "target": ""}  # fmt: skip


def photos(args):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as root:
        for part in ("train", "val"):
            (Path(root) / part / "n01").mkdir(parents=True)
            for k in range(32 if part == "train" else 1):
                image = Image.fromarray(photo(375, 500, k) if k % 3 else photo(500, 375, k))
                image.save(Path(root) / part / "n01" / f"{k}.JPEG", quality=95)
        ours, _ = data.load("imagenet", root)
        plain = ImageFolder(
            Path(root) / "train", transforms.Compose([transforms.RandomResizedCrop(224), transforms.ToTensor()])
        )
        reader = data.Reader(ours, SimpleNamespace(crop="area", uses=None, size=224), seed=0)
        index = np.arange(32)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        times = take_turns(lambda: reader[index], lambda: torch.stack([plain[i][0] for i in index]), 2 * args.turns)
        torch.set_num_threads(threads)
    result = row("photos of 500 x 375, decoded and cropped to 224, one core", times, ">= 1.5x", "ms each", 1e3 / 32)
    return [result]


def processes(args):
    """A search, and a sweep of small trainings, with one process of all cores and with two of half each."""
    cores, rates = len(os.sched_getaffinity(0)), {}
    small = ["--limit", "640", "--device", "cpu"]
    search = [
        "search.py",
        *small,
        "--width",
        "16",
        "--layers",
        "8",
        "--epochs",
        "2",
        "--batch_size",
        "64",
        "--print_every",
        "1",
    ]
    sweep = ["sample.py", "--space", "darts", "--n", "4", "--tasks", "cls", "rot", *small, "--epochs", "2"]
    with tempfile.TemporaryDirectory() as out:
        for n in (1, 2):
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
            env = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // n))}
            for name, command in {"search": search} if args.quick else {"search": search, "sweep": sweep}.items():
                command = [*launch, *command, "--out", f"{out}/{name}{n}"]
                subprocess.run(command, env=env, check=True, capture_output=True, cwd=Path(__file__).parent)
            lines = [json.loads(line) for line in open(f"{out}/search{n}/log.jsonl", encoding="utf-8")]
            rates["search, images per second", n] = [line["images_per_second"] for line in lines if "step" in line][-1]
            if not args.quick:  # from the first to the last training that ended, so without what all have in common
                ends = sorted(path.stat().st_mtime for path in Path(f"{out}/sweep{n}").rglob("result.json"))
                rates["sweep, trainings per hour", n] = 3600 * (len(ends) - 1) / (ends[-1] - ends[0])
    for name in {name for name, _ in rates}:
        ours, plain = rates[name, 2], rates[name, 1]
        target = ">= 1.6x" if "search" in name else ""
        yield {"name": f"{name}, two processes of half the cores; one of all", "unit": "", "ours": ours, "plain": plain,
               "ratio": ours / plain, "target": target}  # fmt: skip


def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def listed(root, cached):
    """(seconds, MiB) to have the names of all files; called in a process of its own."""
    before, start = rss(), time.perf_counter()
    if cached is None:
        names = sorted(os.path.join(root, d, f) for d in os.listdir(root) for f in os.listdir(os.path.join(root, d)))
    else:
        names = files.index_of(root)
    return time.perf_counter() - start, rss() - before, len(names)


def index(args):
    total = 100_000 if args.quick else 1_000_000
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
        for d in range(total // 1000):
            os.makedirs(f"{root}/data/n{d:08}")
            for k in range(1000):
                os.mknod(f"{root}/data/n{d:08}/n{d:08}_{k:06}.JPEG")
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            cold, cached, plain = (pool.submit(listed, f"{root}/data", kind).result() for kind in (False, True, None))
    for name, (seconds, memory, _), target in (
        ("scanned", cold, ""), ("cached", cached, "<= 1 s, <= 150 MB per million"),
    ):  # fmt: skip
        yield {"name": f"index of {total:,} files, {name}; sorted list of paths", "unit": "s", "ours": seconds,
               "plain": plain[0], "ratio": plain[0] / seconds, "memory": f"{memory:.0f} MiB against {plain[1]:.0f}",
               "target": target}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------

PARTS = {"tasks": tasks, "training": training, "photos": photos, "index": index, "supernet": supernet, "amp": amp,
         "processes": processes, "growth": growth}  # fmt: skip


def to_text(found):
    """The rows as a Markdown table."""
    lines = ["| what | ours | plain | ratio (spread) | target |", "| --- | --- | --- | --- | --- |"]
    for r in found:
        spread = " ({:.2f} - {:.2f})".format(*r["spread"]) if "spread" in r else ""
        ratio = f"{r['ratio']:.2f}x{spread}" if "ratio" in r else r.get("growth", "")
        plain = f"{r['plain']:.4g} {r['unit']}" if "plain" in r else ""
        memory = f", {r['memory']}" if "memory" in r else ""
        lines.append(f"| {r['name']} | {r['ours']:.4g} {r['unit']}{memory} | {plain} | {ratio} | {r['target']} |")
    return "\n".join(lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Speed against the plain way of doing the same.")
    parser.add_argument("--quick", action="store_true", help="fewer turns and smaller cases")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    args.turns = 3 if args.quick else 7
    return args


def main(args):
    device = utils.environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = []
    for part in args.only:
        for result in PARTS[part](args):
            found.append(result)
            print(to_text([result]).splitlines()[-1], flush=True)
    print(f"\n{to_text(found)}\n\n{device['device']} of {platform.machine()}, {os.cpu_count()} cores, "
          f"torch {torch.__version__}, {device['date']}")  # fmt: skip
    if args.json:
        utils.write_json(args.json, {"rows": found, **device})


if __name__ == "__main__":
    errors.run(main, parse_args())
