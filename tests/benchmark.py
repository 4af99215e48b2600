"""How fast this code is next to a baseline that computes the same: the table of docs/speed.md.

Both sides of a row get the same inputs, are warmed up and take turns in one process; a row gives
the median of each, the ratio of the medians and the smallest and largest ratio of a turn. The
baselines are written as public code does it: the supernet edge by edge in the default memory
format, with all gradients in both steps; pretext tasks image by image in numpy and scipy; photos
through torchvision's ImageFolder.

    python tests/benchmark.py
    python tests/benchmark.py --quick                            # smaller, fewer turns
    python tests/benchmark.py --only supernet growth --json results/speed.json
"""

import argparse
import functools
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import cli
import numpy as np
import torch
from baseline_tasks import baseline_col, baseline_jig, baseline_rot
from edge_supernet import EdgeSupernet, copy_weights
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import data
import genotypes
import image_files
import model_eval
import model_search
import ops
import pretext
import runs
import utils

ROOT = Path(__file__).parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROCESS_STATUS = Path("/proc/self/status")  # Linux has it; elsewhere memory is not measured

# --------------------------------------------------------------------------------------------------
# Measuring


def take_turns(turns, *sides, warmup=2):
    """The milliseconds of each turn of each function, (sides, turns)."""
    times = np.empty((warmup + turns, len(sides)))
    for turn, k in np.ndindex(times.shape):
        start = time.perf_counter()
        sides[k]()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times[turn, k] = 1e3 * (time.perf_counter() - start)
    return times[warmup:].T


def memory(kind):
    """MiB of this process: VmRSS now, VmHWM its peak so far (a child inherits getrusage's)."""
    return int(re.search(rf"{kind}:\s*(\d+)", PROCESS_STATUS.read_text())[1]) / 1024


def in_new_processes(function, *calls):
    """The results of function(*call), of all calls at the same time."""
    with ProcessPoolExecutor(len(calls), get_context("spawn")) as pool:
        return list(pool.map(function, *zip(*calls)))


def row(name, target, ours, baseline=None, unit="ms"):
    """A row of the table from the measurements of each turn, or from one of each side."""
    values = {"name": name, "target": target, "unit": unit, "ours": float(np.median(ours))}
    if baseline is not None:
        values["baseline"] = float(np.median(baseline))
        values["ratio"] = values["baseline"] / values["ours"]
        ratios = np.array(baseline) / np.array(ours)
        values["spread"] = [float(ratios.min()), float(ratios.max())]
    return values


def row_text(values):
    cells = [values["name"], f"{values['ours']:.4g} {values['unit']}", "", "", values["target"]]
    if "baseline" in values:
        cells[2] = f"{values['baseline']:.4g} {values['unit']}"
        cells[3] = "{:.2f}x ({:.2f} - {:.2f})".format(values["ratio"], *values["spread"])
    return cells


# --------------------------------------------------------------------------------------------------
# The bilevel step of a search

TEN_CLASSES = functools.partial(pretext.PooledHead, num_classes=10)
CIFAR = dict(stem="cifar", size=32, batch=16, width=16, layers=8)
IMAGENET = dict(stem="imagenet", size=224, batch=4, width=16, layers=8)


def search_steps(
    stem, size, batch, width, layers, baseline_layout=torch.contiguous_format, update=True
):
    """(our step, the baseline's, ours with --partial 4): each call does the next bilevel step and
    returns its losses. Without `update` weights and alphas stay as they are."""
    torch.manual_seed(0)
    ours = model_search.Supernet(width, layers, stem, TEN_CLASSES)
    partial = model_search.Supernet(width, layers, stem, TEN_CLASSES, partial=4)
    baseline = EdgeSupernet(width, layers, stem, TEN_CLASSES)
    copy_weights(ours, baseline)
    images = torch.randn(5, 2, batch, 3, size, size).to(DEVICE)
    labels = torch.randint(0, 10, (5, 2, batch)).to(DEVICE)
    first_alphas = model_search.init_alphas(DEVICE)
    criterion = torch.nn.CrossEntropyLoss()

    def make(network, layout, lean, betas=()):
        network = network.to(DEVICE, memory_format=layout)
        arch = [first_alphas.detach().clone().requires_grad_(), *betas]
        w_optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
        alpha_optimizer = torch.optim.Adam(arch, 3e-4, (0.5, 0.999), weight_decay=1e-3)
        batches = itertools.cycle(zip(images, labels))

        def step():
            (x, alpha_x), (y, alpha_y) = next(batches)
            network.requires_grad_(not lean)
            alpha_loss = criterion(network(alpha_x, *arch), alpha_y)
            alpha_optimizer.zero_grad()
            alpha_loss.backward()
            if update:
                alpha_optimizer.step()
            network.requires_grad_(True)
            loss = criterion(network(x, *([a.detach() for a in arch] if lean else arch)), y)
            w_optimizer.zero_grad()
            loss.backward()
            if update:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
                w_optimizer.step()
            return torch.stack([loss, alpha_loss]).detach()

        return step

    return (
        make(ours, torch.channels_last, lean=True),
        make(baseline, baseline_layout, lean=False),
        make(partial, torch.channels_last, lean=True, betas=[model_search.init_betas(DEVICE)]),
    )


def loss_differences(case, dtype, steps):
    """The largest difference from the baseline's losses, or the spacing of numbers if that is more:
    of ours, and of the baseline itself in another memory format, which is rounding alone."""
    torch.set_default_dtype(dtype)
    ours, baseline, _ = search_steps(**case)
    _, other_layout, _ = search_steps(**case, baseline_layout=torch.channels_last)
    sides = ours, other_layout, baseline
    losses = [torch.stack([side() for side in sides]) for _ in range(steps)]
    torch.set_default_dtype(torch.float32)
    losses = torch.stack(losses)  # (steps, 3, 2)
    largest = (losses[:, :2] - losses[:, 2:]).abs().amax((0, 2))
    return largest.clamp(min=torch.finfo(dtype).eps).tolist()


class KernelCount(TorchDispatchMode):
    """Counts the operations that are no views, nor memory alone."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and not func.__name__.startswith(("empty", "_record"))
        return func(*args, **kwargs or {})


def count_kernels(case):
    """Of the forward and backward passes of a bilevel step: ours, the baseline's, --partial 4's.
    Without the optimisers, which on a GPU take all weights at once, and with PyTorch's gradients of
    depthwise convolutions, as on a GPU; on small tensors, as their sizes do not matter."""
    small, counts = {"batch": 2, "width": 4, "size": case["size"] // 4}, []
    with mock.patch.object(ops.DepthwiseConv, "forward", torch.nn.Conv2d.forward):
        for step in search_steps(**case | small, update=False):
            step()
            with KernelCount() as counter:
                step()
            counts.append(counter.count)
    return counts


def peak_memory(case, side):
    """MiB by which four steps raise the peak of a process, or of its tensors on a GPU; called in a
    process of its own."""

    def peak():
        on_gpu = DEVICE.type == "cuda"
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory("VmHWM")

    step = search_steps(**case)[side]
    before = peak()
    for _ in range(4):
        step()
    return peak() - before


def supernet(args):
    cases, steps = [(CIFAR, ">= 2.5x"), (IMAGENET, ">= 2.0x")], 5
    if args.quick:
        cases, steps = [(CIFAR | {"batch": 4, "width": 4, "layers": 2}, "")], 2
    for case, target in cases:
        if DEVICE.type == "cuda":
            case = case | {"batch": 64}
        name = "{stem} stem, {size} px, batch {batch}, width {width}, {layers} cells".format(**case)
        for dtype in (torch.float64, torch.float32):
            what = f"losses of {steps} steps, {name}, {dtype}: largest difference"
            what += "; of the baseline in another memory format"
            yield row(what, "<= 1e-4", *loss_differences(case, dtype, steps), unit="")
        ours, baseline, partial = count_kernels(case)
        yield row("kernels of a step without its updates", ">= 4x", ours, baseline, unit="")
        what = "the same with --partial 4; ours without"
        yield row(what, "", partial, ours, unit="")
        ours, baseline, partial = take_turns(args.turns, *search_steps(**case), warmup=1)
        yield row(f"search step, {name}", target, ours, baseline)
        what = "that step with --partial 4; ours without, of which it should take 0.4"
        yield row(what, ">= 2.5x", partial, ours)
        if DEVICE.type == "cuda" or PROCESS_STATUS.exists():
            ours, baseline, partial = in_new_processes(peak_memory, *((case, k) for k in range(3)))
            what = f"peak memory of that step; target: ours <= 0.7 of the baseline = {1 / 0.7:.2f}x"
            yield row(what, ">= 1.43x", ours, baseline, unit="MiB")
            what = "the same with --partial 4; ours without, of which it should need 0.4"
            yield row(what, ">= 2.5x", partial, ours, unit="MiB")


def growth(args):
    """Our step against batch size, width, cells and image size, each doubled twice."""
    base = dict(stem="cifar", size=16, batch=16, width=8, layers=4)
    factors = (1, 2, 4)
    if args.quick:
        base, factors = base | {"batch": 4, "layers": 1}, (1, 2)
    for name, work in (("batch", 2), ("width", 4), ("layers", 2), ("size", 4)):
        ms = []
        for factor in factors:
            step, *_ = search_steps(**base | {name: factor * base[name]})
            ms.append(np.median(take_turns(args.turns, step, warmup=1)))
        times = ", ".join(f"{t / ms[0]:.2f}" for t in ms)
        with_factors = f"with {', '.join(map(str, factors))} times that"
        what = f"search step, {name} {base[name]}; {with_factors}: {times}"
        yield row(what, f"<= 1, {work}, {work**2}", ms[0])


# --------------------------------------------------------------------------------------------------
# Pretext tasks and photos


def photo(height, width, seed=0):
    """Shades and edges at all scales and some grain, in colours that vary less than brightness:
    uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for k in range(2, 9):
        noise = Image.fromarray(rng.integers(0, 256, (2**k, 2**k, 3), dtype=np.uint8))
        scaled = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
        image += (scaled - 127.5) * 0.5 ** (k - 1)
    gray = image.mean(2, keepdims=True)
    grain = rng.normal(0, 6, (height, width, 1))
    return (127.5 + 3 * gray + 0.2 * (image - gray) + grain).clip(0, 255).astype(np.uint8)


def tasks(args):
    torch.set_num_threads(1)
    baselines = {"col": baseline_col, "rot": baseline_rot, "jig": baseline_jig}
    # size, batch (the paper's, on each of 8 GPUs and on CIFAR-10), target in ms
    cases = [("col", 224, 8, 0.4), ("rot", 224, 4, 0.8), ("jig", 255, 4, 0.8)]
    cases += [("col", 32, 128, 0.02), ("rot", 32, 32, 0.01), ("jig", 32, 32, 0.02)]
    for name, size, batch, target in cases:
        images = torch.from_numpy(np.stack([photo(size, size, seed) for seed in range(batch)]))
        dataset = data.ImageSet(images)
        dataset.padded_crops = size == 32
        stem = "cifar" if size == 32 else "imagenet"
        task = pretext.make_task(name, dataset, size, stem, 2, "cpu")
        x, index, arrays = images.permute(0, 3, 1, 2), torch.arange(batch), images.numpy()

        # Five batches a turn: one would mostly measure the caches that the baseline left behind.
        def ours():
            for _ in range(5):
                task.prepare(x, None, index, train=True)

        def baseline():
            for _ in range(5):
                for array in arrays:
                    baselines[name](array)

        times = take_turns(2 * args.turns, ours, baseline) / (5 * batch)
        yield row(f"{name} at {size} px, an image, one thread", f"<= {target} ms", *times)
    torch.set_num_threads(args.threads)


def photos(args):
    from torchvision import transforms  # here, as the other parts start processes without it
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    n = 8 if args.quick else 32
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "train" / "n01"
        folder.mkdir(parents=True)
        for k in range(n):
            height, width = (375, 500) if k % 3 else (500, 375)
            image = Image.fromarray(photo(height, width, seed=k))
            image.save(folder / f"{k}.JPEG", quality=95)
        shutil.copytree(folder, Path(root) / "val" / "n01")  # ImageNet has both
        crop = transforms.Compose([transforms.RandomResizedCrop(224), transforms.ToTensor()])
        baseline = ImageFolder(folder.parent, crop)
        train_set, _ = data.load("imagenet", root)
        view = image_files.View(None, "area", 224)
        ours = image_files.Decoder(train_set.crop, view, 0, train_set.whites)
        files = train_set.files(torch.arange(n), view)
        times = take_turns(
            2 * args.turns,
            lambda: ours[files],
            lambda: torch.stack([baseline[i][0] for i in range(n)]),
        )
        what = "photo of 500 x 375, decoded and cropped to 224, one core"
        yield row(what, ">= 1.5x", *times / n)
    torch.set_num_threads(args.threads)


# --------------------------------------------------------------------------------------------------
# Training steps, the list of files, processes


def training_step(task, x, y, layers, layout=torch.channels_last, amp=None):
    """A step of training darts_v2 of width 16, which returns its loss."""
    torch.manual_seed(0)
    cell = genotypes.load_arch("darts_v2")
    network = model_eval.Network(cell, 16, layers, "cifar", **task.network_args)
    network = network.to(DEVICE, memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9)
    x = x.contiguous(memory_format=layout)
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
    batch, layers, steps = (8, 2, 2) if args.quick else (64, 8, 20)
    train_set, _ = data.load("shapes", limit=10 * batch)
    task = pretext.make_task("cls", train_set, 32, "cifar", layers, DEVICE)
    batches = data.batches(train_set, task.view, batch, DEVICE, seed=0)
    x, y = task.prepare(*next(batches), train=True)
    ours = training_step(task, x, y, layers)
    baseline = training_step(task, x, y, layers, torch.contiguous_format)
    what = f"training step, darts_v2, width 16, {layers} cells, batch {batch}"
    times = take_turns(args.turns, ours, baseline)
    yield row(f"{what}; default memory format", ">= 1.3x", *times)
    times = take_turns(6, lambda: task.prepare(*next(batches), train=True), ours)
    loading, computing = np.median(times, axis=1)
    share = 100 * loading / (loading + computing)
    yield row("data and pretext task, share of a training step", "<= 3%", share, unit="%")
    for amp in ("bf16", "fp16") if DEVICE.type == "cuda" else ("bf16",):
        ours, baseline = (training_step(task, x, y, layers, amp=kind) for kind in (amp, None))
        loss, loss_fp32 = ([side() for _ in range(steps)][-1] for side in (ours, baseline))
        losses = f"the loss is {loss:.4f}, in fp32 {loss_fp32:.4f}"
        times = take_turns(args.turns, ours, baseline)
        yield row(f"--amp {amp}: after {steps} steps on a batch {losses}; a step", "", *times)


def list_files(root, ours):
    """(ms, MiB or None) that it takes to have the names of all files in the folders of root; called
    in a process of its own."""
    before, start = PROCESS_STATUS.exists() and memory("VmRSS"), time.perf_counter()
    if ours:
        names, *_ = image_files.list_images(root)
    else:
        folders = [os.path.join(root, name) for name in os.listdir(root)]
        names = sorted(os.path.join(f, name) for f in folders for name in os.listdir(f))
    ms = 1e3 * (time.perf_counter() - start)
    assert len(names)  # in memory until here
    return ms, memory("VmRSS") - before if PROCESS_STATUS.exists() else None


def index(args):
    total = 20_000 if args.quick else 1_000_000
    with tempfile.TemporaryDirectory() as root:
        for folder in range(total // 1000):
            (Path(root) / f"n{folder:08}").mkdir()
            for k in range(1000):
                open(f"{root}/n{folder:08}/n{folder:08}_{k:06}.JPEG", "x").close()
        ours, baseline = (  # in turn, as they are timed
            in_new_processes(list_files, (root, ours))[0] for ours in (True, False)
        )
    yield row(f"list of {total:,} files; sorted Python strings", "", ours[0], baseline[0])
    if PROCESS_STATUS.exists():
        yield row("memory of a process that has it", "", ours[1], baseline[1], unit="MiB")


def read_batches(train_set, batches):
    """(ms an image, MiB of its own that a worker has) of two workers, if it is on disk"""
    train_set.workers = 2
    steps = data.batches(train_set, image_files.View(None, "area", 32), 100, "cpu", seed=0)
    next(steps)  # they have started
    start = time.perf_counter()
    for _ in range(batches):
        next(steps)
    ms = 1e3 * (time.perf_counter() - start) / (100 * batches)
    rollups = [Path(f"/proc/{w.pid}/smaps_rollup") for w in multiprocessing.active_children()]
    text = "".join(path.read_text() for path in rollups[:1] if path.exists())
    return ms, sum(map(int, re.findall(r"Private_Dirty:\s*(\d+)", text))) / 1024


def losses_of_a_search(path):
    options = f"--dataset imagenet22k --data {path} --task rot --size 32 --stem cifar --width 4"
    options += " --layers 2 --limit 400 --batch_size 20 --epochs 1 --workers 1 --print_every 1"
    with tempfile.TemporaryDirectory() as out:
        launch("search.py", options, out, 1, 1)
        head, *lines = map(json.loads, Path(out, "log.jsonl").read_text().splitlines())
    return head["split"], [line["loss"] for line in lines if "step" in line]


def archives(args):
    """The same small images as files in nested folders, in tar archives and in memory."""
    total, classes, batches = (400, 4, 3) if args.quick else (200_000, 20, 300)
    with tempfile.TemporaryDirectory() as root:
        os.mkdir(f"{root}/tars")
        for c in range(classes):
            jpegs = [io.BytesIO() for _ in range(25)]
            for k, file in enumerate(jpegs):
                Image.fromarray(photo(64, 64, 25 * c + k)).save(file, "jpeg", quality=90)
            with tarfile.open(f"{root}/tars/{c:02}.tar", "w") as tar:
                for k in range(total // classes):
                    member, content = tarfile.TarInfo(f"{k // 1000}/{k:05}.jpg"), jpegs[k % 25]
                    member.size = content.seek(0, os.SEEK_END)
                    content.seek(0)
                    tar.addfile(member, content)
                    path = Path(f"{root}/folders/{c:02}/{member.name}")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.getvalue())
        found = []
        for kind in ("tars", "folders") * 2:  # the first time is to warm up
            start = time.perf_counter()
            train_set, _ = data.load("imagenet22k", f"{root}/{kind}")
            listed = time.perf_counter()
            part = train_set.subset(data.random_subset(total, (batches + 1) * 100))
            part.resize(32)
            part_read = time.perf_counter()
            in_memory = data.load_images(part)
            ms = 1e3 * (time.perf_counter() - part_read) / len(part)
            on_disk, (slicing, _) = read_batches(part, batches), read_batches(in_memory, batches)
            found.append((1e3 * (listed - start), *on_disk, ms, slicing))
        ours, baseline = found[2:]
        what = f"{total:,} images of 64 px in {classes} tar archives; in nested folders"
        yield row(f"{what}: to list them", "", ours[0], baseline[0])
        yield row("an image of a batch, cropped to 32 px by two workers", "", ours[1], baseline[1])
        if PROCESS_STATUS.exists():
            yield row("memory of its own of a worker", "", ours[2], baseline[2], unit="MiB")
        yield row("an image read into memory", "", ours[3], baseline[3])
        yield row("an image of a batch from memory; from disk", "", ours[4], baseline[1])
        if not args.quick:
            tars, folders = (losses_of_a_search(f"{root}/{kind}") for kind in ("tars", "folders"))
            assert tars == folders, (tars, folders)
            what = f"a search of {len(tars[1])} steps has the same losses, their mean"
            yield row(what, "", np.mean(tars[1]), np.mean(folders[1]), unit="")


def launch(script, options, out, processes, threads):
    torchrun = f"-m torch.distributed.run --standalone --nproc_per_node={processes}".split()
    command = [sys.executable, *(torchrun if processes > 1 else []), script]
    command += ["--device", "cpu", *options.split(), "--out", out]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)


def image_of_a_search(options, processes, threads):
    """Its milliseconds."""
    with tempfile.TemporaryDirectory() as out:
        launch("search.py", options, out, processes, threads)
        lines = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "step" in line]
    return 1e3 / statistics.median(speeds[2:])


def training_of_a_sweep(options, processes, threads):
    """Its milliseconds, between the ends of trainings: what comes before the first is the same for
    one process and for many."""
    with tempfile.TemporaryDirectory() as out:
        launch("sample.py", options, out, processes, threads)
        ends = sorted(path.stat().st_mtime for path in Path(out).rglob("result.json"))
    return 1e3 * (ends[-1] - ends[processes - 1]) / (len(ends) - processes)


def processes(args):
    """Two processes on half of the cores each against one on one core and one on all of them."""
    search = "--limit 384 --width 16 --layers 8"
    sweep = "--space darts -n 5 --limit 640 --tasks cls rot --epochs 2"
    if args.quick:
        search = "--limit 128 --width 4 --layers 1"
        sweep = "--space nasbench101 -n 4 --limit 50 --tasks cls --epochs 1"
    search += " --task cls --epochs 1 --print_every 1"
    for measure, options, what, target in (
        (image_of_a_search, search, "an image of a search", ">= 1.6x"),
        (training_of_a_sweep, sweep, "a training of a sweep", ""),
    ):
        what = f"{what}, two processes on half the cores each"
        two = measure(options, 2, max(1, args.threads // 2))
        yield row(f"{what}; one on one core", target, two, measure(options, 1, 1))
        if not args.quick:
            yield row(f"{what}; one on all", "", two, measure(options, 1, args.threads))


# --------------------------------------------------------------------------------------------------
# The command line

PARTS = {
    part.__name__: part
    for part in (supernet, tasks, photos, training, index, archives, processes, growth)
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Speed of this code next to a baseline.")
    parts = dict(nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="smaller cases and fewer turns")
    parser.add_argument("--only", help=f"of {', '.join(PARTS)}", **parts)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    args.turns, args.threads = 2 if args.quick else 7, torch.get_num_threads()
    return args


def main(args):
    rows, environment = [], runs.environment(DEVICE)
    head = ["what", "ours", "baseline", "ratio (spread)", "target"]
    print("\n".join(cli.markdown_table(head, [])[:2]))
    for part in args.only:
        for values in PARTS[part](args):
            rows.append({"part": part, **values})
            print(cli.markdown_table(head, [row_text(values)])[2], flush=True)
            if args.json:
                cli.write_json(args.json, {"rows": rows, **environment})
    print("\n{device}, torch {versions[torch]}, {date}".format(**environment))


if __name__ == "__main__":
    cli.run(main, parse_args)
