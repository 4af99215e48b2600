"""How fast this code is against the plain way of doing the same: what the README's speed table shows.

Both sides of a row get the same inputs, are warmed up and take turns in one process; a row gives the median of each, the
ratio of the medians and the smallest and largest ratio of a turn. The plain sides are written as public code does it: the
supernet edge by edge in the default memory format, with all gradients in both steps; pretext tasks sample by sample in
numpy and scipy; photos through torchvision's ImageFolder.

    python benchmark.py                                          # some 25 minutes on two idle cores
    python benchmark.py --quick                                  # fewer turns, less of the rest: two minutes
    python benchmark.py --only supernet --json results/speed.json
"""

import argparse
import functools
import itertools
import json
import os
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

import cli
import data
import genotypes
import image_files
import model_eval
import model_search
import pretext
import utils

HERE = Path(__file__).parent
sys.path.append(str(HERE / "tests"))
from edge_supernet import EdgeSupernet, copy_weights  # noqa: E402
from plain_tasks import plain_col, plain_jig, plain_rot  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def take_turns(turns, *sides, warmup=2):
    """A list of milliseconds for each of the functions."""
    times = [[] for _ in sides]
    for turn in range(warmup + turns):
        for side, ms in zip(sides, times):
            start = time.perf_counter()
            side()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn >= warmup:
                ms.append(1e3 * (time.perf_counter() - start))
    return times


def row(name, target, ours, plain=None, unit="ms"):
    """A line of the table: lists of measurements, or single ones."""
    found = {"name": name, "target": target, "unit": unit, "ours": float(np.median(ours))}
    if plain is not None:
        ratios = np.array(plain) / np.array(ours)
        found |= {
            "plain": float(np.median(plain)),
            "spread": [float(ratios.min()), float(ratios.max())],
        }
        found["ratio"] = found["plain"] / found["ours"]
    return found


def timed(name, target, turns, ours, plain, n=1):
    """The line of two functions that do n things each, in ms for one of them."""
    return row(name, target, *(np.array(take_turns(turns, ours, plain)) / n))


def to_text(found):
    """The rows as a Markdown table."""
    lines = []
    for r in found:
        ratio = "{:.2f}x ({:.2f} - {:.2f})".format(r["ratio"], *r["spread"]) if "ratio" in r else ""
        plain = f"{r['plain']:.4g} {r['unit']}" if "plain" in r else ""
        lines.append([r["name"], f"{r['ours']:.4g} {r['unit']}", plain, ratio, r["target"]])
    return "\n".join(
        cli.markdown_table(["what", "ours", "plain", "ratio (spread)", "target"], lines)
    )


# ---------------------------------------------------------------------------------------------------------------------
# The bilevel step of a search

TEN_CLASSES = functools.partial(pretext.PooledHead, num_classes=10)
CIFAR = dict(stem="cifar", size=32, batch=16, width=16, layers=8)
IMAGENET = dict(stem="imagenet", size=224, batch=4, width=16, layers=8)


def search_steps(stem, size, batch, width, layers, plain_layout=torch.contiguous_format):
    """(our step, the plain step): each call does the next bilevel step and returns its two losses."""
    torch.manual_seed(0)
    ours = model_search.Supernet(width, layers, stem, TEN_CLASSES)
    plain = EdgeSupernet(width, layers, stem, TEN_CLASSES)
    copy_weights(ours, plain)
    images, labels = torch.randn(5, 2, batch, 3, size, size), torch.randint(0, 10, (5, 2, batch))
    images, labels, alphas = images.to(DEVICE), labels.to(DEVICE), model_search.init_alphas(DEVICE)
    criterion = torch.nn.CrossEntropyLoss()

    def make(network, layout, lean):
        network = network.to(DEVICE, memory_format=layout)
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

    return make(ours, torch.channels_last, lean=True), make(plain, plain_layout, lean=False)


def memory(kind):
    """MiB of this process: VmRSS now, VmHWM at most so far (not getrusage's, which a process inherits)."""
    return int(re.search(rf"{kind}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak_of(side, case):
    """MiB by which four steps raise the memory of a process; called in one of its own."""
    step = search_steps(**case)[side]
    before = memory("VmHWM")
    for _ in range(4):
        step()
    return memory("VmHWM") - before


def supernet(args):
    for case, target in ((CIFAR, ">= 2.5x"), (IMAGENET, ">= 2.0x")):
        if DEVICE.type == "cuda":
            case = case | {"batch": 64}
        name = "{stem} stem, {size} px, batch {batch}, width {width}, {layers} cells".format(**case)
        yield row(
            f"search step, {name}", target, *take_turns(args.turns, *search_steps(**case), warmup=1)
        )
        if args.quick:
            continue
        if DEVICE.type == "cpu":
            with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
                peaks = [pool.submit(peak_of, side, case).result() for side in (0, 1)]
            yield row(
                f"peak memory of that step; target: ours <= 0.7 of plain = {1 / 0.7:.2f}x",
                ">= 1.43x",
                *peaks,
                "MiB",
            )
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            ours, plain = search_steps(**case)
            _, again = search_steps(
                **case, plain_layout=torch.channels_last
            )  # differs from plain by rounding alone
            losses = [torch.stack([side() for side in (ours, plain, again)]) for _ in range(5)]
            difference, rounding = (
                max((step[k] - step[1]).abs().max().item() for step in losses) for k in (0, 2)
            )
            what = f"losses of five of them, {dtype}: largest difference; of plain in another memory format"
            yield row(what, "<= 1e-4", difference, rounding, "")


def growth(args):
    """Our step against batch size, width, cells and image size, each doubled twice."""
    base = dict(stem="cifar", size=16, batch=16, width=8, layers=4)
    for name, work in (("batch", 2), ("width", 4), ("layers", 2), ("size", 4)):
        ms = []
        for factor in (1, 2) if args.quick else (1, 2, 4):
            step, _ = search_steps(**base | {name: factor * base[name]})
            ms.append(statistics.median(take_turns(args.turns, step, warmup=1)[0]))
        times = ", ".join(f"{t / ms[0]:.2f}" for t in ms)
        yield row(
            f"search step, {name} {base[name]}; with 1, 2, 4 times that: {times}",
            f"<= 1, {work}, {work**2}",
            ms[0],
        )


# ---------------------------------------------------------------------------------------------------------------------
# Pretext tasks


def photo(height, width, seed=0):
    """Shades and edges at all scales and some grain, in colours that vary less than brightness, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for k in range(2, 9):
        noise = Image.fromarray(rng.integers(0, 256, (2**k, 2**k, 3), dtype=np.uint8))
        image += (
            np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) - 127.5
        ) * 0.5 ** (k - 1)
    gray = image.mean(2, keepdims=True)
    grain = rng.normal(0, 6, (height, width, 1))
    return (127.5 + 3 * gray + 0.2 * (image - gray) + grain).clip(0, 255).astype(np.uint8)


def tasks(args):
    torch.set_num_threads(1)
    # size, batch (the paper's, on each of 8 GPUs and on CIFAR-10), target in ms
    cases = [("col", 224, 8, 0.4), ("rot", 224, 4, 0.8), ("jig", 255, 4, 0.8)]
    cases += [("col", 32, 128, 0.02), ("rot", 32, 32, 0.01), ("jig", 32, 32, 0.02)]
    for name, size, batch, target in cases:
        images = torch.from_numpy(np.stack([photo(size, size, seed) for seed in range(batch)]))
        dataset = data.ImageSet(images)
        dataset.padded_crops = size == 32
        task = pretext.make_task(
            name, dataset, size, "cifar" if size == 32 else "imagenet", 2, "cpu"
        )
        plain = {"col": plain_col, "rot": plain_rot, "jig": plain_jig}[name]
        x, index, arrays = images.permute(0, 3, 1, 2), torch.arange(batch), images.numpy()
        # a turn of ours is five batches, so that it does not only measure how the caches are after a turn of the other side
        yield timed(
            f"{name} at {size} px, an image, one thread",
            f"<= {target} ms",
            2 * args.turns,
            lambda: [task.prepare(x, None, index, train=True) for _ in range(5)],
            lambda: [plain(a) for a in arrays for _ in range(5)],
            5 * batch,
        )
    torch.set_num_threads(args.threads)


# ---------------------------------------------------------------------------------------------------------------------
# Training steps, photos, the list of files, processes


def training_step(task, x, y, layout=torch.channels_last, amp=None):
    """A step of training darts_v2 (width 16, 8 cells), which returns its loss."""
    torch.manual_seed(0)
    network = model_eval.Network(
        genotypes.load_arch("darts_v2"),
        16,
        8,
        "cifar",
        task.head,
        task.in_channels,
        task.reductions,
    ).to(DEVICE, memory_format=layout)
    optimizer, x = (
        torch.optim.SGD(network.parameters(), 0.025, momentum=0.9),
        x.contiguous(memory_format=layout),
    )
    autocast, scaler = utils.precision(DEVICE, amp)

    def step():
        with autocast:
            loss = task.loss(network(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def training(args):
    train, _ = data.load("shapes", limit=640)
    task = pretext.make_task("cls", train, 32, "cifar", 8, DEVICE)
    batches = data.batches(train, task.view, 64, DEVICE, seed=0)
    x, y = task.prepare(*next(batches), train=True)
    step, plain = training_step(task, x, y), training_step(task, x, y, torch.contiguous_format)
    what = "training step, darts_v2, width 16, 8 cells, batch 64; default memory format"
    yield timed(what, ">= 1.3x", args.turns, step, plain)
    loading, computing = map(
        statistics.median, take_turns(6, lambda: task.prepare(*next(batches), train=True), step)
    )
    yield row(
        "data and pretext task, share of a training step",
        "<= 3%",
        100 * loading / (loading + computing),
        unit="%",
    )
    for amp in ("bf16", "fp16") if DEVICE.type == "cuda" else ("bf16",):
        ours, plain, n = (
            training_step(task, x, y, amp=amp),
            training_step(task, x, y),
            2 if args.quick else 20,
        )
        last = [[side() for _ in range(n)][-1] for side in (ours, plain)]
        what = (
            "--amp {}: after {} steps on a batch the loss is {:.4f}, in fp32 {:.4f}; a step".format(
                amp, n, *last
            )
        )
        yield timed(what, "", args.turns, ours, plain)


def photos(args):
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        for part, k in itertools.product(("train", "val"), range(32)):
            path = Path(root) / part / "n01" / f"{k}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(*((375, 500) if k % 3 else (500, 375)), k)).save(path, quality=95)
        as_public = transforms.Compose([transforms.RandomResizedCrop(224), transforms.ToTensor()])
        plain = ImageFolder(path.parent.parent, as_public)
        train, _ = data.load("imagenet", root)
        view = image_files.View(None, "area", 224)
        ours = image_files.Decoder(train.crop, train.mean, view, seed=0)
        batch = train.files(torch.arange(32), view)
        yield timed(
            "photo of 500 x 375, decoded and cropped to 224, one core",
            ">= 1.5x",
            2 * args.turns,
            lambda: ours[batch],
            lambda: torch.stack([plain[i][0] for i in range(32)]),
            32,
        )
    torch.set_num_threads(args.threads)


def list_files(root, plain):
    """(ms, MiB, count) that it takes to have the names of all files; called in a process of its own."""
    before, start = memory("VmRSS"), time.perf_counter()
    if plain:
        names = sorted(
            os.path.join(root, d, f)
            for d in os.listdir(root)
            for f in os.listdir(os.path.join(root, d))
        )
    else:
        names = image_files.index_of(root)
    return 1e3 * (time.perf_counter() - start), memory("VmRSS") - before, len(names)


def index(args):
    total = 100_000 if args.quick else 1_000_000
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"], before = (
            f"{root}/cache",
            os.environ.get("XDG_CACHE_HOME", ""),
        )  # empty counts as unset
        for d in range(total // 1000):
            os.makedirs(f"{root}/data/n{d:08}")
            for k in range(1000):
                os.mknod(f"{root}/data/n{d:08}/n{d:08}_{k:06}.JPEG")
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            cold, cached, plain = (
                pool.submit(list_files, f"{root}/data", kind).result()
                for kind in (False, False, True)
            )
        size = (
            sum(path.stat().st_size for path in Path(f"{root}/cache").rglob("*") if path.is_file())
            / 1e6
        )
    os.environ["XDG_CACHE_HOME"] = before
    yield row(f"list of {total:,} files; sorted Python strings", "", cold[0], plain[0])
    yield row("the same from the cache", "<= 1000 ms", cached[0], plain[0])
    yield row("memory of a process that has it", "", cold[1], plain[1], "MiB")
    yield row("the index on disk", "<= 150 MB", size, unit="MB")


def processes(args):
    """A search, and a sweep of small trainings, by one process on one core, by one on all cores and by two on half each."""
    shapes = ["--device", "cpu", "--limit"]
    images, width, layers = ("192", "8", "4") if args.quick else ("384", "16", "8")
    search = [
        "search.py",
        *shapes,
        images,
        "--task",
        "cls",
        "--width",
        width,
        "--layers",
        layers,
        "--epochs",
        "1",
        "--print_every",
        "1",
    ]
    sweep = [
        "sample.py",
        *shapes,
        "640",
        "--space",
        "darts",
        "-n",
        "5",
        "--tasks",
        "cls",
        "rot",
        "--epochs",
        "2",
    ]
    for command, what, target in (
        (search, "an image of a search", ">= 1.6x"),
        (sweep, "a training of a sweep", ""),
    ):
        ms = []
        for n, threads in ((1, 1), (2, max(1, args.threads // 2)), (1, args.threads))[
            : 2 if args.quick else 3
        ]:
            with tempfile.TemporaryDirectory() as out:
                launch = [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    f"--nproc_per_node={n}",
                ]
                subprocess.run(
                    [*launch, *command, "--out", out],
                    check=True,
                    capture_output=True,
                    cwd=HERE,
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                )
                if command is search:
                    lines = map(json.loads, Path(out, "log.jsonl").read_text().splitlines())
                    ms.append(
                        1e3
                        / statistics.median(
                            [line["images_per_second"] for line in lines if "step" in line][2:]
                        )
                    )
                else:  # between the ends of trainings, as what comes before the first is the same for one and many
                    ends = sorted(path.stat().st_mtime for path in Path(out).rglob("result.json"))
                    ms.append(1e3 * (ends[-1] - ends[n - 1]) / (len(ends) - n))
        yield row(
            f"{what}, two processes on half the cores each; one on one core", target, ms[1], ms[0]
        )
        if args.quick:
            return
        yield row(f"{what}, two processes on half the cores each; one on all", "", ms[1], ms[2])


PARTS = {
    part.__name__: part for part in (tasks, training, photos, index, supernet, processes, growth)
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Speed against the plain way of doing the same.")
    parser.add_argument("--quick", action="store_true", help="fewer turns and smaller cases")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        metavar="PART",
        help=", ".join(PARTS),
    )
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    args.turns, args.threads = 2 if args.quick else 7, torch.get_num_threads()
    return args


def main(args):
    found, where = [], utils.environment(DEVICE)
    for part in args.only:
        for result in PARTS[part](args):
            found.append(result)
            print(to_text([result]).splitlines()[-1], flush=True)
            if args.json:
                cli.write_json(Path(args.json), {"rows": found, **where})
    print(f"\n{to_text(found)}\n{where['device']}, torch {torch.__version__}, {where['date']}")


if __name__ == "__main__":
    cli.run(main, parse_args)
