"""The sample-based study (Sec. 3 of the paper): draw architectures, train each from scratch on each task with each seed.

Options that are not listed here are those of train.py and go to every training; what is left out has the value of the
paper's study. Results: OUT/archs.json, OUT/<task>/<id>_s<seed>/result.json. The same command again does only what is
missing. correlate.py makes tables and figures of it.

    python sample.py --space darts --n 4 --tasks cls rot --epochs 1                          # embedded data, on a CPU
    python sample.py --space nasbench101 --n 500 --draw_only --out runs/nb                   # only archs.json
    torchrun --nproc_per_node=8 sample.py --space darts -n 500 --seeds 1 2 3 --dataset cifar10 --data data/
    python sample.py --archs archs.json --shard 3/16 --dataset cifar10 --data data/          # job 3 of an array of 16
    python sample.py --status runs/sample_darts_cifar10
"""

import argparse
import contextlib
import fcntl
import itertools
import os
import random
import time
import traceback
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import cli
import genotypes
from cli import InputError, at_least
from genotypes import (
    MAX_EDGES,
    MAX_VERTICES,
    NASBENCH_OPS,
    NODES,
    PRIMITIVES,
    Genotype,
    NASBenchCell,
)

# torch is imported by what needs it: a status view on a cluster's login node does not.

# The size filter of the paper's DARTS sample, inferred from its list: within 20% of ResNet-56 as CIFAR-10 networks.
PARAMS = (0.8 * 855_770, 1.2 * 855_770)
MACS = (0.8 * 125.75e6, 1.2 * 125.75e6)
NASBENCH_CELLS = 423_624


def parse_args(argv=None):
    """The arguments of the sweep; `train_argv` are those for train.py."""
    what = (
        "Draw architectures and train each on each task. All other options are those of train.py."
    )
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(
        "--space", choices=["darts", "nasbench101"], default="darts", help="where to draw from"
    )
    # torchrun of Python 3.11 and older takes --n for a short form of its own options, -n not
    parser.add_argument(
        "-n", "--n", type=at_least(1, int, NASBENCH_CELLS + 1), default=500, help="how many to draw"
    )
    parser.add_argument("--draw_seed", type=at_least(0, int), default=0, help="of the draw")
    parser.add_argument(
        "--params",
        type=at_least(0),
        nargs=2,
        default=PARAMS,
        metavar=("LOW", "HIGH"),
        help="keep DARTS cells with so many parameters as width 16, 20 cells, 10 classes "
        "(default: 0.685e6 to 1.027e6, inferred from the paper's list)",
    )
    parser.add_argument(
        "--macs",
        type=at_least(0),
        nargs=2,
        default=MACS,
        metavar=("LOW", "HIGH"),
        help="and multiply-accumulates at 32 x 32 (default: 100.6e6 to 150.9e6)",
    )
    parser.add_argument("--archs", metavar="FILE", help="train this list instead of drawing one")
    parser.add_argument("--draw_only", action="store_true", help="write archs.json and stop")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["cls", "rot", "col", "jig"],
        help="of train.py (default: all four)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=at_least(0, int),
        default=[1],
        help="of the trainings (default: 1)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: runs/sample_SPACE_DATASET)"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        default="0/1",
        help="only every N-th training, from I = 0, 1, ... N-1",
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="train again what failed before"
    )
    parser.add_argument(
        "--status", metavar="DIR", help="show how far the sweep in DIR is, and do nothing"
    )
    args, args.train_argv = parser.parse_known_args(argv)
    i, _, n = args.shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        parser.error(f"argument --shard: {args.shard} is not I/N with I from 0 to N-1")
    args.shard = int(i), int(n)
    return args


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def draw_nasbench(rng: random.Random) -> NASBenchCell:
    """A cell, uniform over the 423,624 that are not isomorphic to each other. A graph is drawn uniformly from all upper
    triangular matrices with all labels, and kept with probability 1 / (number of these that are isomorphic to it)."""
    sizes = range(2, MAX_VERTICES + 1)
    counts = [2 ** (V * (V - 1) // 2) * len(NASBENCH_OPS) ** (V - 2) for V in sizes]
    while True:
        (V,) = rng.choices(sizes, counts)
        bits = rng.getrandbits(V * (V - 1) // 2)
        if bits.bit_count() > MAX_EDGES:
            continue
        edges = [
            pair for k, pair in enumerate(itertools.combinations(range(V), 2)) if bits >> k & 1
        ]
        # All edges lead upwards, so all vertices are on a path from first to last if only the first has no edge that enters
        # it and only the last has none that leaves it.
        if len({i for i, _ in edges}) < V - 1 or len({j for _, j in edges}) < V - 1:
            continue
        ops = ["input", *rng.choices(NASBENCH_OPS, k=V - 2), "output"]
        if rng.random() * len(labelings(edges, ops)) < 1:
            return NASBenchCell([[int((i, j) in edges) for j in range(V)] for i in range(V)], ops)


def labelings(edges, ops) -> set:
    """All that one gets by renumbering the vertices so that edges still lead upwards, as (edges, ops)."""
    V, found = len(ops), set()
    for order in itertools.permutations(range(1, V - 1)):
        new = (0, *order, V - 1)  # vertex v gets the number new[v]
        if all(new[i] < new[j] for i, j in edges):
            labels = tuple(op for _, op in sorted(zip(new, ops)))
            found.add((tuple(sorted((new[i], new[j]) for i, j in edges)), labels))
    return found


def draw_darts(rng: random.Random) -> Genotype:
    """Two inputs of each node, and their ops, uniform and independent, `none` and duplicates included, as the paper did."""
    cells = []
    for _ in ("normal", "reduce"):
        cells += [
            [(rng.choice(PRIMITIVES), rng.randrange(2 + k // 2)) for k in range(2 * NODES)],
            [2, 3, 4, 5],
        ]
    return Genotype(*cells)


@lru_cache
def darts_costs():
    """(params, MACs) of the network that the size filter is about (width 16, 20 cells, CIFAR-10): of one of `none` alone,
    and what an op in a place adds, {("normal" or "reduce", op, stride): ...}. They add up, as channel counts are fixed."""
    import torch

    import model_eval
    import pretext
    import utils

    task = SimpleNamespace(
        in_channels=3,
        input_size=32,
        inputs_per_target=1,
        reductions=2,
        head=lambda C: pretext.PooledHead(C, 10),
    )

    def cost(genotype):
        build = partial(model_eval.Network, genotype, 16, 20, "cifar", task)
        with torch.device("meta"):
            params = utils.count_params(build())
        return params, utils.count_macs(build, task)

    nothing = Genotype([("none", 0)] * 8, [2, 3, 4, 5], [("none", 0)] * 8, [2, 3, 4, 5])
    base = cost(nothing)
    added = {}
    for cell, op, stride in itertools.product(("normal", "reduce"), PRIMITIVES, (1, 2)):
        if cell == "reduce" or stride == 1:
            total = cost(
                nothing._replace(**{cell: [*nothing.normal[:-1], (op, 0 if stride == 2 else 2)]})
            )
            added[cell, op, stride] = tuple(a - b for a, b in zip(total, base))
    return base, added


def darts_cost(genotype: Genotype):
    """(params, MACs) of a cell's CIFAR-10 network of the sample-based study."""
    base, added = darts_costs()
    places = [("normal", op, 1) for op, _ in genotype.normal]
    places += [("reduce", op, 2 if j < 2 else 1) for op, j in genotype.reduce]
    return tuple(b + sum(added[place][k] for place in places) for k, b in enumerate(base))


def draw(space, n, seed, params=PARAMS, macs=MACS) -> dict:
    """{id: architecture}: n different ones."""
    rng, found, rejected = random.Random(seed), {}, 0
    while len(found) < n:
        if space == "nasbench101":
            arch = draw_nasbench(rng)
            key, fits = genotypes.nasbench_hash(arch), True
        else:
            arch = draw_darts(rng)
            cells = [
                sorted(pairs[k : k + 2])
                for pairs in (arch.normal, arch.reduce)
                for k in range(0, 2 * NODES, 2)
            ]
            key, cost = str(cells), darts_cost(arch)  # the two inputs of a node may change places
            fits = all(low <= c <= high for c, (low, high) in zip(cost, (params, macs)))
        if fits and key not in found:
            found[key], rejected = arch, 0
        else:
            rejected += 1
        if rejected > 100_000:
            raise InputError(
                f"none of 100,000 more cells is within --params {params} and --macs {macs}; found {len(found)}"
            )
    return {f"{k:05}": arch for k, arch in enumerate(found.values())}


# ---------------------------------------------------------------------------------------------------------------------
# The state of a sweep is in its folders: result.json of a finished training, failed.json of one that raised


def jobs_of(out, ids, tasks, seeds) -> dict:
    """{folder: (id, task, seed)} of every training. One seed after the other, so that early results cover all cells."""
    return {
        out / task / f"{i}_s{seed}": (i, task, seed)
        for seed in seeds
        for i in ids
        for task in tasks
    }


def written(name, jobs):
    """The files of that name of these jobs."""
    return [folder / name for folder in jobs if (folder / name).exists()]


def status(jobs) -> str:
    times, failed = (
        [path.stat().st_mtime for path in written("result.json", jobs)],
        written("failed.json", jobs),
    )
    left = len(jobs) - len(times) - len(failed)
    text = f"{len(times)} done, {len(failed)} failed, {left} left of {len(jobs)}"
    last = sorted(times)[-20:]  # the pace of the last 20, of all processes together
    if len(last) > 1 and last[-1] > last[0]:
        rate = (len(last) - 1) / (last[-1] - last[0])
        text += f"; {3600 * rate:.3g} an hour, {left / rate / 3600:.1f} hours left"
    return text


def show_status(out):
    archs, sweep = genotypes.load_archs(out / "archs.json"), cli.read_json(out / "sweep.json")
    jobs = jobs_of(out, archs, sweep["tasks"], sweep["seeds"])
    print(f"{out}: {status(jobs)}")
    for task in sweep["tasks"]:
        print(f"  {task}: {status(jobs_of(out, archs, [task], sweep['seeds']))}")
    for path in written("failed.json", jobs):
        print(f"  failed: {path.parent}: {cli.read_json(path)['error']}")


def job_numbers(n):
    """The numbers of the jobs that this process shall do. Under torchrun its ranks take them from one counter."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield from range(n)
        return
    import torch.distributed

    store, _, _ = next(torch.distributed.rendezvous("env://"))
    counter = f"next_job{os.environ['TORCHELASTIC_RESTART_COUNT']}"  # the store outlives ranks that torchrun starts again
    os.environ.update(WORLD_SIZE="1", RANK="0")  # every rank trains on its own
    while (k := store.add(counter, 1) - 1) < n:
        yield k


def run_job(args, folder, load):
    """Trains one; whatever it raises is written down and ends nothing but this training."""
    import train

    (folder / "failed.json").unlink(missing_ok=True)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):  # its numbers are in log.jsonl
        try:
            train.main(args, load)
        except Exception as error:
            trace = "" if isinstance(error, InputError) else traceback.format_exc()
            text = f"{type(error).__name__}: {error}".removeprefix("InputError: ")
            cli.write_json(folder / "failed.json", {"error": text, "traceback": trace})
            return text
    (folder / "checkpoint.pt").unlink(missing_ok=True)  # thousands of them would fill a disk


def main(args):
    if args.status:
        show_status(Path(args.status))
        return
    import torch

    import data
    import train
    import utils

    # --- settings: those of train.py, once for all trainings
    def training(arch, task, seed, out):
        return train.parse_args(
            [
                "--recipe",
                "sample",
                *args.train_argv,
                "--arch",
                arch,
                "--task",
                task,
                "--seed",
                str(seed),
                "--out",
                str(out),
                "--resume",
            ]
        )

    example, *_ = [
        training("", task, args.seeds[0], "") for task in args.tasks
    ]  # an unknown task ends here
    out = Path(args.out or f"runs/sample_{args.space}_{example.dataset}")

    device = example.device
    if (
        device == "cuda" and torch.cuda.is_available()
    ):  # the ranks of torchrun share the GPUs of their machine
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    utils.open_device(device)  # what is wrong with it ends here

    # --- architectures
    drawing = args.space, args.n, args.draw_seed, args.params, args.macs
    archs = genotypes.load_archs(args.archs) if args.archs else draw(*drawing)
    path = out / "archs.json"
    if path.exists() and genotypes.load_archs(path) != archs:
        raise InputError(f"{path} holds other architectures than these; choose another --out")

    # --- data
    load = lru_cache(maxsize=1)(data.load)  # once for all trainings of this process
    if not args.draw_only:
        size = example.size or train.settings(
            "sample", example.dataset, args.tasks[0], args.space
        ).get("size")
        # what is wrong with it ends here
        sets = load(example.dataset, example.data, size, example.limit, example.workers)
        for line in data.describe(*sets):
            print(line)
    out.mkdir(parents=True, exist_ok=True)
    cli.write_json(path, [{"id": i, **genotypes.to_entry(arch)} for i, arch in archs.items()])
    print(f"{len(archs)} architectures: {path}")
    if args.draw_only:
        return

    # --- jobs
    settings = utils.identity_of(example)
    del settings["task"], settings["seed"]
    path = out / "sweep.json"
    sweep = (
        cli.read_json(path) if path.exists() else {"settings": settings, "tasks": [], "seeds": []}
    )
    utils.check_identity(path, sweep["settings"], settings)
    for key, values in (("tasks", args.tasks), ("seeds", args.seeds)):
        sweep[key] += [value for value in values if value not in sweep[key]]
    cli.write_json(path, sweep)
    jobs = jobs_of(out, archs, args.tasks, args.seeds)
    mine = list(jobs.items())[args.shard[0] :: args.shard[1]]
    print(status(jobs), flush=True)

    # --- loop
    for k in job_numbers(len(mine)):
        folder, (arch, task, seed) = mine[k]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(
                    lock, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the system frees it when a process ends, however it ends
            except BlockingIOError:
                continue
            failed_before = (folder / "failed.json").exists() and not args.retry_failed
            if failed_before or (folder / "result.json").exists():
                continue
            job_args = training(f"{out / 'archs.json'}:{arch}", task, seed, folder)
            job_args.device = device
            start = time.time()
            error = run_job(job_args, folder, load)
        print(
            f"{task} {arch} seed {seed}: {error or f'{time.time() - start:.0f} s'}  [{status(jobs)}]",
            flush=True,
        )
    failed = written("failed.json", jobs)
    if failed:
        print(
            f"{len(failed)} trainings failed; python sample.py --status {out} lists them, --retry_failed tries them again"
        )


if __name__ == "__main__":
    cli.run(main, parse_args)
