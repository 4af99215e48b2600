"""The tables and figures of this study, from searches.json and trainings.json of each learning rate
of the alphas; given one of these, the folder of its searches and that of their trainings, it writes
those two files first.

    export PYTHONPATH=.:results/cifar10_cells
    python results/cifar10_objectives/tables.py [3e-2 SEARCHES RUNS]
"""

import json
import sys
from itertools import combinations, permutations, product
from pathlib import Path

import cli
import compare
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import correlate
import genotypes
import likeness
import report

HERE = Path(__file__).parent
RECIPE = 16, 0.1, 5.0  # epochs, lr, grad_clip: that of results/cifar10_cells
FILLS = {"": "full", "partial": "none", "12 epochs": "left"}  # of markers
OTHERS = {"random": ("#bbbbbb", "x"), "published": ("black", "+")}  # cells of the other study
STYLES = correlate.STYLES | {"seg": ("black", "P")} | OTHERS  # colour, marker
OBJECTIVES = ["cls", "rot", "col", "jig"]
KINDS = {"_k1": "", "_k4": ", partial", "12_k1": ", 12 epochs"}  # of searches: in ids, in names
KEPT_ALPHAS = 12  # those of the last epochs
KEPT = "task dataset seed world_size device date git_commit seconds epoch epochs identity".split()


def folder_of(alpha_lr):
    return HERE / f"alpha_lr_{alpha_lr}"


def collect(folder, searches, runs):
    """searches.json, a list of architectures with the alpha history of each, and trainings.json."""
    folder.mkdir(exist_ok=True)
    entries = []
    for path in sorted(Path(searches).glob("*/genotype.json")):
        search = genotypes.read_search(path)
        meta = search["meta"]
        if meta["epoch"] < meta["epochs"]:
            continue
        for age, epoch in enumerate(reversed(meta["history"])):
            for name in ("alphas", "betas"):
                kept = age < KEPT_ALPHAS and epoch[name]
                epoch[name] = np.round(kept, 5).tolist() if kept else None
        kept = {name: meta[name] for name in (*KEPT, "history", "evaluation")}
        arch = genotypes.to_entry(genotypes.parse_arch(search, path))
        _, _, name = path.parent.name.split("_", 2)  # of search_cifar10_rot_k1_s0
        entries.append({"id": name, **arch, "meta": {**kept, "versions": meta["versions"]}})
    compare.write_lines(folder / "searches.json", entries)
    compare.write_lines(folder / "trainings.json", compare.read_runs(runs))


def rows_of(path, recipe=RECIPE):
    """{architecture: its training by a recipe, seed 1}"""
    rows = json.loads(path.read_text())
    return {r["arch"]: r for r in rows if (compare.recipe_of(r), r["seed"]) == (recipe, 1)}


def objective_table(groups, randoms, scores, params):
    """Of the cells of each objective: accuracies by seed, size, and how far above random cells."""
    lines = []
    for name, members in groups.items():
        values = [scores[arch] for arch in members]
        size = f"{np.mean([params[arch] for arch in members]) / 1e3:.1f}"
        mean = "{:.2f} [{:.2f}, {:.2f}]".format(*compare.paired(values))
        above = compare.text(compare.at_equal_size(scores, params, members, randoms))
        lines.append([name, ", ".join(f"{v:.2f}" for v in values), mean, size, above])
    head = ["cells", "each", "mean [95%]", "params, thousands", "- random, at equal parameters"]
    return cli.markdown_table(head, lines)


def gain_line(name, gains) -> str:
    """{architecture: what its search gains over another of the same seed}. All searches of one seed
    start from the same weights and images, so the interval is over the means of the seeds."""
    of_seeds = {}
    for arch, gain in gains.items():
        of_seeds.setdefault(arch.rsplit("_s", 1)[1], []).append(gain)
    means = [np.mean(of_seed) for _, of_seed in sorted(of_seeds.items())]
    each = ", ".join(f"{mean:.2f}" for mean in means)
    return f"{name}: {compare.text(compare.paired(means))} (seeds: {each}; {len(gains)} pairs)"


def order_lines(groups, scores):
    """Whether the order of the objectives repeats over the seeds of their searches."""
    values = np.array([[scores[arch] for arch in members] for members in groups.values()])  # (4, 3)
    ranks = stats.rankdata(values, axis=0).T  # (seeds, objectives)

    def spread(ranks):
        return np.var(np.sum(ranks, 0))

    seeds, objectives = ranks.shape
    W = spread(ranks) * 12 / (seeds**2 * (objectives**2 - 1))
    orders = product(*(permutations(of_seed) for of_seed in ranks[1:]))
    p = np.mean([spread([ranks[0], *order]) >= spread(ranks) - 1e-9 for order in orders])
    between = stats.f_oneway(*values).pvalue
    rows = []
    for seed, of_seed in enumerate(values.T):
        order = sorted(zip(of_seed, groups), reverse=True)
        rows.append([seed, " > ".join(f"{name} {value:.2f}" for value, name in order)])
    text = f"Kendall's W over the seeds {W:.2f} (p {p:.2f}); differences between"
    text += f" the objectives by analysis of variance: p {between:.2f}."
    return [*cli.markdown_table(["seed of the search", "order"], rows), text, ""]


def of_one_objective(searches):
    """Are searches of one objective more alike than those of two, of other seeds? A permutation
    test: p is the share of all relabellings of the objectives within the seeds by which they are
    so by as much, in the sum of both cells and in each."""
    by_seed = {}
    for k, search in enumerate(searches):
        by_seed.setdefault(search["meta"]["seed"], []).append(k)
    first, *others = by_seed.values()  # each in the order of the objectives
    tasks = [[searches[k]["meta"]["task"] for k in of_seed] for of_seed in by_seed.values()]
    if any(of_seed != tasks[0] for of_seed in tasks):
        raise cli.InputError(f"one search of each objective and seed is needed, not {tasks}")
    table = likeness.compare(searches)

    def gain(*orders):  # of each seed, the searches of the first objective, the second, ...
        same = np.zeros(table.shape[:2], bool)
        for a, b in combinations(orders, 2):
            same[a, b] = same[b, a] = True
        return np.nanmean(table[same], 0) - np.nanmean(table[~same], 0)  # (2 cells, measures)

    found = gain(first, *others)
    chance = np.array([gain(first, *ways) for ways in product(*map(permutations, others))])
    both = (chance.sum(1) >= found.sum(0) - 1e-9).mean(0)
    each = (chance >= found - 1e-9).mean(0)  # (2 cells, measures)
    rows = []
    for m, name in enumerate(likeness.MEASURES):
        row = [name, "{:+.2f} / {:+.2f}".format(*found[:, m]), f"{both[m]:.2f}"]
        rows.append([*row, "{:.3f} / {:.3f}".format(*each[:, m])])
    return cli.markdown_table(["in common", "one objective - two", "p", "p of each"], rows)


def draw(groups, others, scores, params, path, metric="test accuracy"):
    """The metric against size, and what is above the line of the random cells, whose rows tell the
    markers of both."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ticks = dict(zip(OTHERS, others)) | groups
    x, y = ([values[arch] for arch in ticks["random"]] for values in (params, scores))
    line = stats.linregress(x, y)
    ends = np.array([min(params.values()), max(params.values())])
    left.plot(ends, line.intercept + line.slope * ends, color="#bbbbbb", lw=1)
    for k, (name, members) in enumerate(ticks.items()):
        task, *kind = name.split(", ")
        color, marker = STYLES[task]
        style = dict(color=color, fillstyle=FILLS[kind[0] if kind else ""], ls="none")
        x, y = (np.array([values[arch] for arch in members]) for values in (params, scores))
        above = y - (line.intercept + line.slope * x)
        left.plot(x, y, marker=marker, **style)
        right.plot(above, [k] * len(x), marker=marker, **style)
        right.plot(above.mean(), k, "|", color=color, ms=18, mew=2)
    left.set(xlabel="parameters", ylabel=metric)
    right.set_yticks(range(len(ticks)), list(ticks))
    right.invert_yaxis()
    right.set_xlabel(f"{metric} above the line of the random cells; |: the mean")
    right.axvline(0, color="#bbbbbb", lw=1)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    cli.save_figure(figure, path)


def tables(folder, cells, others):
    """Prints those of the searches in a folder, draws its figure, and returns the accuracies."""
    searches = cli.read_json(folder / "searches.json", [{"id": str, "meta": genotypes.META}])
    found = rows_of(folder / "trainings.json")
    trained = {**cells, **found}
    scores = {arch: max(row["top1"]) for arch, row in trained.items()}
    params = {arch: row["params"] for arch, row in trained.items()}
    randoms, published = others
    groups = {}
    for kind, suffix in KINDS.items():
        for task in OBJECTIVES:
            members = [f"{task}{kind}_s{seed}" for seed in range(3)]
            if all(arch in found for arch in members):
                groups[task + suffix] = members
    print("\n".join(objective_table(groups, randoms, scores, params)))
    pairs = []
    for partial in ("", ", partial"):
        if f"cls{partial}" not in groups:
            continue
        without = sum((groups[task + partial] for task in OBJECTIVES[1:]), [])
        labels, every = groups[f"cls{partial}"], without + groups[f"cls{partial}"]
        pairs += [(f"without labels{partial} - with labels{partial}", without, labels)]
        pairs += [(f"without labels{partial} - random", without, randoms)]
        pairs += [(f"found{partial} - random", every, randoms)]
        pairs += [(f"found{partial} - published", every, published)]
    if longer := groups.get("col, 12 epochs"):
        without = groups["rot"] + longer + groups["jig"]
        pairs.append(("without labels, col longer - with labels", without, groups["cls"]))
        pairs.append(("without labels, col longer - random", without, randoms))
    rows = [compare.difference_row(*pair, scores, params) for pair in pairs]
    print("\n".join(cli.markdown_table(compare.DIFFERENCE, rows)))
    for kind in ("_k4", "12_k1"):
        if same := {arch: arch.replace(kind, "_k1") for arch in found if kind in arch}:
            print(gain_line(f"{kind} - _k1", {a: scores[a] - scores[b] for a, b in same.items()}))
    print()
    for partial in ("", ", partial"):
        if f"cls{partial}" in groups:
            same = {task: groups[task + partial] for task in OBJECTIVES}
            print("\n".join([f"Order{partial}", "", *order_lines(same, scores)]))
    report.add_titles({Path("runs", entry["id"], "genotype.json"): entry for entry in searches})
    print("\n".join(report.search_table(searches, [])))
    print("\n".join(report.likeness_tables(searches)))
    for kind in ("_k1", "_k4"):
        names = tuple(task + kind for task in OBJECTIVES)
        same = [search for search in searches if search["id"].startswith(names)]
        if len({search["meta"]["seed"] for search in same}) > 1:
            print("\n".join(of_one_objective(same)))
    draw(groups, others, scores, params, folder / "cells.png")
    return {arch: scores[arch] for arch in found}


def main():
    if len(sys.argv) > 1:
        collect(folder_of(sys.argv[1]), *sys.argv[2:])
    cells = rows_of(HERE.parent / "cifar10_cells" / "trainings.json")
    by_group = {group: [] for group in compare.GROUPS}
    for arch in cells:
        by_group[compare.group_of(arch)].append(arch)
    others = by_group["random"], by_group["without"] + by_group["with"]
    found = {}
    for alpha_lr in ("3e-3", "3e-2"):
        print(f"# --alpha_lr {alpha_lr}\n")
        found[alpha_lr] = tables(folder_of(alpha_lr), cells, others)
    slow, fast = found.values()
    print(gain_line("3e-2 - 3e-3", {arch: fast[arch] - slow[arch] for arch in slow}))


if __name__ == "__main__":
    main()
