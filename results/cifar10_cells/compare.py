"""The tables and figures of this study, from trainings.json; given the folder of the runs, from
these, which it writes to trainings.json first.

    PYTHONPATH=. python results/cifar10_cells/compare.py [runs/cells]
"""

import json
import statistics
import sys
from itertools import combinations
from pathlib import Path

import cli
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import correlate
import genotypes

HERE = Path(__file__).parent
GROUPS = {  # of cells: label, colour
    "without": ("found without labels", "#1b9e77"),
    "with": ("found with labels", "#d95f02"),
    "random": ("random, of the same sizes", "#999999"),
}


def group_of(arch):
    if arch.startswith("like_"):
        return "random"
    return "without" if arch.endswith(("_rot", "_col", "_jig")) else "with"


def read_runs(folder):
    """A row for each training, in an order that does not depend on when it ran."""
    rows = []
    for path in sorted(Path(folder).rglob("result.json")):
        result = genotypes.read_result(path)
        row = {"arch": result["arch"].split(":")[-1], "seed": result["seed"]}
        row |= {"epochs": len(result["epochs"]), "params": result["params"]}
        row |= {"top1": [epoch["top1"] for epoch in result["epochs"]], "macs": result["macs"]}
        rows.append(row | {name: result[name] for name in ("seconds", "date", "git_commit")})
    return sorted(rows, key=lambda row: (row["epochs"], row["seed"], row["arch"]))


def paired(differences):
    """Mean, and its 95% interval by Student's t."""
    margin = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return np.mean(differences) + np.array([0, -margin, margin])


def welch(a, b):
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return np.array([np.mean(a) - np.mean(b), interval.low, interval.high])


def at_equal_size(scores, params, first, second):
    """The difference of two sets of cells that is left when a line in the number of parameters,
    the same for both, is taken out."""
    member = np.array([1.0] * len(first) + [0.0] * len(second))
    archs = [*first, *second]
    X = np.column_stack([np.ones(len(archs)), [params[arch] for arch in archs], member])
    y = np.array([scores[arch] for arch in archs])
    solution, rest, *_ = np.linalg.lstsq(X, y, rcond=None)
    freedom = len(archs) - 3
    error = np.sqrt(rest[0] / freedom * np.linalg.inv(X.T @ X)[2, 2])
    margin = stats.t.ppf(0.975, freedom) * error
    return solution[2] + np.array([0, -margin, margin])


def text(numbers):
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*numbers)


def table_of(rows):
    """{architecture: {seed: best accuracy}}"""
    table = {}
    for row in rows:
        table.setdefault(row["arch"], {})[row["seed"]] = max(row["top1"])
    return table


def compare(rows):
    """Lines about the trainings of one length, all cells with the same seeds."""
    table, params = table_of(rows), {row["arch"]: row["params"] for row in rows}
    seeds = sorted(set.intersection(*(set(scores) for scores in table.values())))
    scores = {arch: statistics.mean(found[seed] for seed in seeds) for arch, found in table.items()}
    archs = {group: [arch for arch in scores if group_of(arch) == group] for group in GROUPS}
    lines = [f"{len(scores)} cells, seeds {seeds}", ""]
    body = []
    for group, members in archs.items():
        values = [scores[arch] for arch in members]
        mean, low, high = paired(values)
        size = statistics.mean(params[arch] for arch in members) / 1e3
        spread = f"{statistics.stdev(values):.2f}"
        interval = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        body.append([GROUPS[group][0], len(values), interval, spread, f"{size:.1f}"])
    head = ["cells", "number", "accuracy, mean [95%]", "std of cells", "params, thousands"]
    lines += cli.markdown_table(head, body)

    released = [arch for arch in archs["with"] if arch.startswith("unnas")]
    published = archs["without"] + archs["with"]
    body = []
    for name, members in (
        ("without labels - random", archs["without"]),
        ("with labels - random", archs["with"]),
        ("published - random", published),
    ):
        twins = [f"like_{arch}" for arch in members]
        gaps = [scores[arch] - scores[twin] for arch, twin in zip(members, twins)]
        adjusted = at_equal_size(scores, params, members, archs["random"])
        body.append([name, f"{len(gaps)} pairs", text(paired(gaps)), text(adjusted)])
    for name, members in (
        ("without labels - with labels", archs["with"]),
        ("without labels - with labels, the paper's own", released),
    ):
        values = ([scores[arch] for arch in group] for group in (archs["without"], members))
        adjusted = at_equal_size(scores, params, archs["without"], members)
        number = f"{len(archs['without'])}, {len(members)}"
        body.append([name, number, text(welch(*values)), text(adjusted)])
    head = ["difference", "cells", "points [95%]", "at equal parameters, by regression [95%]"]
    lines += cli.markdown_table(head, body)
    if len(seeds) > 1:
        within = np.sqrt(np.mean([np.var([*t.values()], ddof=1) for t in table.values()]))
        pairs = combinations(seeds, 2)
        rhos = [stats.spearmanr(*([t[s] for t in table.values()] for s in p))[0] for p in pairs]
        lines.append(f"Seeds of one cell: std {within:.2f}, rho between two {np.mean(rhos):.2f}.")
    x, y = np.array([[params[arch], scores[arch]] for arch in scores]).T
    lines.append(f"Parameters and accuracy: rho {stats.spearmanr(x, y)[0]:.2f}.")
    return lines


def rho_text(x, y):
    """Spearman's rho of two lists of accuracies, with its 95% interval over the cells."""
    sample = np.random.default_rng(0).integers(len(x), size=(2000, len(x)))
    limits = correlate.interval(correlate.rank_correlation(x[sample], y[sample]))
    return correlate.format_rho(correlate.rank_correlation(x, y), limits)


def compare_order(trainings, what):
    """How alike the order of cells is in several {name: rows}, as far as all have them."""
    tables = [table_of(rows) for rows in trainings.values()]
    archs = sorted(set.intersection(*(set(table) for table in tables)))
    scores = [np.array([table[arch][1] for arch in archs]) for table in tables]
    params = {row["arch"]: row["params"] for rows in trainings.values() for row in rows}
    sizes = [params[arch] for arch in archs]
    columns = zip(archs, sizes, *([f"{score:.2f}" for score in values] for values in scores))
    lines = cli.markdown_table(["cell", "params", *trainings], [*columns])
    for (a, x), (b, y) in combinations(zip(trainings, scores), 2):
        gain = correlate.rank_correlation(np.array(sizes), y - x)
        lines.append(f"{a}, {b}: rho {rho_text(x, y)}; parameters and the gain: rho {gain:.2f}.")
    return [f"## {what}: {len(archs)} cells, seed 1", "", *lines, ""]


def draw(tables, params, path):
    """Accuracy against size, of the length with most cells; against length, of cells with all."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    length = max(tables, key=lambda n: len(tables[n]))
    scores = {arch: statistics.mean(found.values()) for arch, found in tables[length].items()}
    for arch in scores:
        if f"like_{arch}" in scores:
            pair = arch, f"like_{arch}"
            line = [[values[a] for a in pair] for values in (params, scores)]
            left.plot(*line, color="#cccccc", lw=0.8, zorder=0)
    for group, (label, color) in GROUPS.items():
        members = [arch for arch in scores if group_of(arch) == group]
        x, y = ([values[arch] for arch in members] for values in (params, scores))
        left.plot(x, y, "o", color=color, label=label)
        for arch in members:
            if all(arch in table for table in tables.values()):
                accuracies = [table[arch][1] for table in tables.values()]
                right.plot([*tables], accuracies, "o-", color=color, ms=4)
    left.set(xlabel="parameters", ylabel=f"test accuracy after {length} epochs, mean of seeds")
    left.legend(fontsize=8)
    right.set(xlabel="length of the training, epochs", ylabel="test accuracy, seed 1")
    right.set_xscale("log", base=2)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    cli.save_figure(figure, path)


def main():
    if len(sys.argv) > 1:
        rows = read_runs(sys.argv[1])
        lines = ",\n".join(json.dumps(row) for row in rows)
        cli.write_text(HERE / "trainings.json", f"[\n{lines}\n]\n")
    rows = json.loads((HERE / "trainings.json").read_text())
    lengths = sorted({row["epochs"] for row in rows})
    of_length = {n: [row for row in rows if row["epochs"] == n] for n in lengths}
    tables = {n: table_of(trainings) for n, trainings in of_length.items()}
    fewest = min(map(len, tables.values()))
    named = {f"{n} epochs": trainings for n, trainings in of_length.items()}
    print("\n".join(compare_order(named, "Length")))
    for n, trainings in of_length.items():
        if len(tables[n]) > fewest:
            print("\n".join([f"## {n} epochs", "", *compare(trainings)]))
    others = json.loads((HERE / "unclipped.json").read_text())
    recipes = {"lr 0.05, clipped": of_length[8], "lr 0.1, not clipped": others}
    print("\n".join(compare_order(recipes, "Recipe")))
    draw(tables, {row["arch"]: row["params"] for row in rows}, HERE / "cells.png")


if __name__ == "__main__":
    main()
