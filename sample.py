"""Train many random architectures on many tasks: the sample-based experiments.

Options that --help does not list go to train.py. Writes OUT/archs.json and
OUT/<task>/<id>_s<seed>/result.json, which correlate.py reads. The same command again does what is
missing; any number of processes on any machines with a common disk may share the work.

    python sample.py --space darts -n 4 --tasks cls rot --epochs 1    # embedded data, on a CPU
    torchrun --nproc_per_node=8 sample.py -n 500 --seeds 1 2 3 --dataset cifar10 --data data/
    python sample.py --status runs/sample_darts_cifar10
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import time
import traceback
from functools import lru_cache, partial
from pathlib import Path

import cli
from cli import InputError, TrainingError, at_least

import genotypes
from genotypes import MAX_EDGES, MAX_VERTICES, NASBENCH_OPS, PRIMITIVES, Genotype, NASBenchCell

# The size filter of the paper's DARTS sample, inferred from its list: CIFAR-10 networks of width 16
# and 20 cells within 20% of ResNet-56
PARAMS = 0.8 * 855_770, 1.2 * 855_770
MACS = 0.8 * 125.75e6, 1.2 * 125.75e6
NASBENCH_CELLS = 423_624  # that are not isomorphic to each other
SWEEP = {"trainings": [{"task": str, "seed": int}], "settings": genotypes.IDENTITY}  # sweep.json


def parse_args(argv=None):
    text = "Draw architectures and train each on each task. Other options are those of train.py."
    parser = argparse.ArgumentParser(description=text, formatter_class=cli.HelpFormatter)
    add = parser.add_argument_group("architectures").add_argument
    add("--space", choices=["darts", "nasbench101"], default="darts", help="where to draw from")
    # -n as well, as torchrun of Python 3.11 and older takes --n for one of its own options
    add("-n", "--n", type=at_least(1, int, NASBENCH_CELLS + 1), default=500, help="how many")
    add("--draw_seed", type=at_least(0, int), default=0, help="seed of the draw")
    limits = dict(type=at_least(0), nargs=2, metavar=("LOW", "HIGH"))
    add("--params", default=PARAMS, help="size filter of DARTS cells: parameters", **limits)
    add("--macs", default=MACS, help="size filter: multiply-accumulates at 32 x 32", **limits)
    add("--archs", type=cli.path, metavar="FILE", help="train this list instead of drawing one")
    add("--draw_only", action="store_true", help="write archs.json and stop")
    add = parser.add_argument_group("trainings").add_argument
    add("--tasks", nargs="+", default=["cls", "rot", "col", "jig"], help="tasks of train.py")
    add("--seeds", nargs="+", type=at_least(0, int, 2**32), default=[1], help="of the trainings")
    add("--retry_failed", action="store_true", help="train again what failed before")
    add = parser.add_argument_group("run").add_argument
    add("--out", type=cli.path, metavar="DIR", help="default: runs/sample_SPACE_DATASET")
    add("--shard", metavar="I/N", default="0/1", help="train every N-th alone, from the I-th on")
    add("--status", type=cli.path, metavar="DIR", help="show how far the sweep in DIR is, and stop")
    args, args.train_argv = parser.parse_known_args(argv)
    i, _, n = args.shard.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        parser.error(f"argument --shard: {args.shard} is not I/N with I from 0 to N-1")
    args.shard = int(i), int(n)
    for name, (low, high) in (("params", args.params), ("macs", args.macs)):
        if low > high:
            parser.error(f"argument --{name}: LOW {low:g} is above HIGH {high:g}")
    return args


# ------------------------------------------------------------------------------------------ Drawing


def draw_nasbench(rng: random.Random) -> NASBenchCell:
    """A cell, uniform over all that are not isomorphic to each other: a labelled upper triangular
    matrix, uniform over all, is kept with probability 1 / (number of those isomorphic to it)."""
    sizes = range(2, MAX_VERTICES + 1)
    graphs = [2 ** (V * (V - 1) // 2) * len(NASBENCH_OPS) ** (V - 2) for V in sizes]
    while True:
        (V,) = rng.choices(sizes, graphs)
        bits = rng.getrandbits(V * (V - 1) // 2)
        if bits.bit_count() > MAX_EDGES:
            continue
        pairs = enumerate(itertools.combinations(range(V), 2))
        edges = [pair for k, pair in pairs if bits >> k & 1]
        # As edges lead upwards, all vertices are on paths from the first to the last if only the
        # first has no edge that enters it and only the last has none that leaves it.
        sources, targets = {i for i, _ in edges}, {j for _, j in edges}
        if len(sources) < V - 1 or len(targets) < V - 1:
            continue
        ops = ["input", *rng.choices(NASBENCH_OPS, k=V - 2), "output"]
        if rng.random() * len(labelings(edges, ops)) < 1:
            matrix = [[int((i, j) in edges) for j in range(V)] for i in range(V)]
            return NASBenchCell(matrix, ops)


def labelings(edges, ops) -> set:
    """All isomorphic graphs whose edges lead upwards, as (edges, ops)."""
    V, found = len(ops), set()
    for order in itertools.permutations(range(1, V - 1)):
        new = (0, *order, V - 1)  # vertex v gets the number new[v]
        if all(new[i] < new[j] for i, j in edges):
            new_ops = tuple(op for _, op in sorted(zip(new, ops)))
            found.add((tuple(sorted((new[i], new[j]) for i, j in edges)), new_ops))
    return found


def draw_darts(rng: random.Random) -> Genotype:
    """Inputs and ops uniform and independent, with `none` and duplicates, as in the paper."""
    edges = [(rng.choice(PRIMITIVES), rng.randrange(2 + k % 8 // 2)) for k in range(16)]
    return Genotype(edges[:8], [2, 3, 4, 5], edges[8:], [2, 3, 4, 5])


@lru_cache
def cost_with(width, layers, op="none", cell="normal", stride=1):
    """(params, MACs) of a CIFAR-10 network with one op in each cell, `none` elsewhere."""
    import model_eval  # not at the top, as torch: --help and --status run without it
    import utils

    none, nodes = [("none", 0)] * 8, [2, 3, 4, 5]
    edge = op, 0 if stride == 2 else 2  # a reduction cell halves its two inputs
    genotype = Genotype(none, nodes, none, nodes)._replace(**{cell: [*none[:-1], edge]})
    build = partial(model_eval.build_network, genotype, width, layers, "cifar", num_classes=10)
    return utils.count(build, (1, 3, 32, 32))


def darts_cost(genotype: Genotype, width=16, layers=20):
    """(params, MACs) of a cell as a CIFAR-10 network, to which each edge adds its own; by default
    that of the size filter."""
    edges = [(op, "normal", 1) for op, _ in genotype.normal]
    edges += [(op, "reduce", 2 if j < 2 else 1) for op, j in genotype.reduce]
    costs = [cost_with(width, layers, *edge) for edge in edges]
    bases = cost_with(width, layers)
    return tuple(sum(values) - 15 * base for values, base in zip(zip(*costs), bases))


def draw(space, n, seed, params=PARAMS, macs=MACS) -> dict:
    """{id: architecture}: n different ones, DARTS cells within the limits of the size filter."""
    rng, found, misses = random.Random(seed), {}, 0
    for _ in cli.progress(itertools.count(), f"cells drawn, {n} of which must fit"):
        if len(found) == n:
            return {f"{k:05}": arch for k, arch in enumerate(found.values())}
        if space == "nasbench101":
            arch = draw_nasbench(rng)
            key, fits = genotypes.nasbench_hash(arch), True
        else:
            arch = draw_darts(rng)
            edges = arch.normal + arch.reduce  # the two edges of a node may change places
            key = str([sorted(edges[k : k + 2]) for k in range(0, len(edges), 2)])
            costs = zip(darts_cost(arch), (params, macs))
            fits = all(low <= cost <= high for cost, (low, high) in costs)
        misses += 1
        if fits and key not in found:
            found[key], misses = arch, 0
        elif misses == (100_000 if found else 10_000):
            raise InputError(f"no new cell in {misses:,}: widen --params {params}, --macs {macs}")


# ---------------- The sweep: a folder has result.json (done), failed.json (an error), a lock (busy)


def trainings(out, archs, tasks, seeds) -> dict:
    """{folder: (id, task, seed)}. Seeds come one after the other: early results cover all cells."""
    order = itertools.product(seeds, archs, tasks)
    return {out / task / f"{arch}_s{seed}": (arch, task, seed) for seed, arch, task in order}


def existing(name, folders):
    """The files of that name in these folders; an empty one is none."""
    paths = [folder / name for folder in folders]
    return [path for path in paths if path.exists() and path.stat().st_size]


def status(folders) -> str:
    times = sorted(path.stat().st_mtime for path in existing("result.json", folders))
    failed = len(existing("failed.json", folders))
    left, last = len(folders) - len(times) - failed, times[-50:]  # of all processes together
    gaps = sorted(after - before for before, after in zip(last, last[1:]))[:-1]  # without a pause
    text = f"{len(times)} done, {failed} failed, {left} left of {len(folders)}"
    if len(gaps) >= 10:  # fewer may be those of processes that end together
        hours = sum(gaps) / len(gaps) / 3600
        text += f"; {left * hours:.1f} hours left at the pace of the last {len(last)}"
    return text


def show_status(out):
    archs = genotypes.load_archs(out / "archs.json")
    sweep = cli.read_json(out / "sweep.json", SWEEP)
    folders = {}
    for one in sweep["trainings"]:  # of each architecture
        folders |= trainings(out, archs, [one["task"]], [one["seed"]])
    print(f"{out}: {status(folders)}")
    for path in existing("failed.json", folders):
        print(f"  failed: {path.parent}: {cli.read_json(path, {'error': str})['error']}")


def main(args):
    if args.status:
        return show_status(Path(args.status))
    start = time.time()
    import torch
    from filelock import FileLock, Timeout

    import data
    import runs
    import train
    import utils

    # --- set-up
    if "WORLD_SIZE" in os.environ:  # under torchrun
        utils.end_with_parent()

    def settings(arch, task, seed, out="runs"):
        argv = ["--recipe", "sample", *args.train_argv, "--arch", arch, "--task", task]
        return train.parse_args([*argv, "--seed", str(seed), "--out", str(out), "--resume"])

    # with any architecture: wrong options end here, before something is drawn or written
    example, *_ = [settings("darts_v2", task, args.seeds[0]) for task in args.tasks]
    out = Path(args.out or f"runs/sample_{args.space}_{example.dataset}")
    device = example.device
    if device == "cuda" and torch.cuda.is_available():  # torchrun's ranks share a machine's GPUs
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    utils.open_device(device)
    load = lru_cache(data.load)  # reads the data once for all trainings of this process
    if not args.draw_only:
        where = example.dataset, example.data, example.size, example.limit
        print("\n".join(data.describe(load(*where, example.workers)[0])))

    # --- architectures
    drawing = args.space, args.n, args.draw_seed, args.params, args.macs
    archs = genotypes.load_archs(args.archs) if args.archs else draw(*drawing)
    keys = map(genotypes.architecture_key, archs.values())
    if args.archs and len({*keys}) < len(archs):  # for correlate.py they are results of one
        raise InputError(f"{args.archs}: two of its ids are one architecture")
    archs_file, sweep_file = out / "archs.json", out / "sweep.json"
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "lock"):  # processes that start together write the same, in turn
        cli.remove_partial_files(out)
        if not archs_file.exists():
            entries = [{"id": i, **genotypes.to_entry(arch)} for i, arch in archs.items()]
            cli.write_json(archs_file, entries)
        if genotypes.load_archs(archs_file) != archs:
            raise InputError(f"{archs_file} holds other architectures; choose another --out")
        print(f"{len(archs)} architectures: {archs_file}")
        if args.draw_only:
            return
        # all trainings of a sweep have the settings of its first
        sweep = {"trainings": []}
        if sweep_file.exists():
            sweep = cli.read_json(sweep_file, SWEEP)
            stored = {name: sweep["settings"].get(name) for name in ("task", "seed")}
            if [stored] != sweep["trainings"][:1]:
                raise InputError(f'{sweep_file}: "settings" are not those of its first training')
        asked = [{"task": t, "seed": s} for t, s in itertools.product(args.tasks, args.seeds)]
        sweep["trainings"] += [one for one in asked if one not in sweep["trainings"]]
        arch = f"{archs_file}:{next(iter(archs))}"
        identity = runs.settings_of(settings(arch, **sweep["trainings"][0]))
        runs.check_identity(sweep_file, sweep.setdefault("settings", identity), identity)
        cli.write_json(sweep_file, sweep)

    # --- loop
    every = trainings(out, archs, args.tasks, args.seeds)
    mine = dict(list(every.items())[args.shard[0] :: args.shard[1]])
    print(status(every), flush=True)
    quiet = contextlib.redirect_stdout(open(os.devnull, "w", errors="replace"))  # it is in its log
    for folder, (arch, task, seed) in mine.items():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):  # or it is taken
            failed = folder / "failed.json"
            # what failed after our start has just been tried again by another process
            retry = args.retry_failed and failed.exists() and failed.stat().st_mtime < start
            if existing("result.json", [folder]) or (failed.exists() and not retry):
                continue
            failed.unlink(missing_ok=True)
            training = settings(f"{archs_file}:{arch}", task, seed, folder)
            training.device = device
            try:
                with quiet:
                    result = train.main(training, load, distributed=False)
                text = f"{result['seconds']:.0f} s"
                for name in runs.CHECKPOINTS:  # thousands would fill a disk
                    (folder / name).unlink(missing_ok=True)
            except Exception as error:  # ends this training alone, or all: a GPU may be lost
                of_all = isinstance(error, (InputError, OSError, torch.AcceleratorError))
                if of_all and type(error) is not TrainingError:
                    raise
                text = f"{type(error).__name__}: {error}".removeprefix("TrainingError: ")
                cli.write_json(failed, {"error": text, "traceback": traceback.format_exc()})
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the handler was of that training
            print(f"{task} {arch} seed {seed}: {text}  [{status(every)}]", flush=True)

    if failed := existing("failed.json", mine):
        for folder in mine:  # the first rank to fail makes torchrun end the others: wait for them
            with FileLock(folder / "lock"):
                pass
        raise SystemExit(f"{len(failed)} trainings failed ({failed[0]}, ...); see --retry_failed")


if __name__ == "__main__":
    cli.run(main, parse_args)
