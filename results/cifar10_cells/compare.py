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


def lengths_table(rows):
    """How alike the order of the pilot's cells is after trainings of different lengths."""
    lengths = sorted({row["epochs"] for row in rows})
    tables = [table_of([row for row in rows if row["epochs"] == n]) for n in lengths]
    archs = sorted(set.intersection(*(set(table) for table in tables)))
    scores = np.array([[table[arch][1] for arch in archs] for table in tables])
    sample = np.random.default_rng(0).integers(len(archs), size=(2000, len(archs)))
    body = []
    for i, n in enumerate(lengths):
        row = [f"{n} epochs", f"{scores[i].mean():.2f}", f"{scores[i].std(ddof=1):.2f}"]
        for j in range(len(lengths)):
            x, y = scores[i], scores[j]
            rhos = correlate.rank_correlation(x[sample], y[sample])
            rho = correlate.rank_correlation(x, y)
            row.append(correlate.format_rho(rho, correlate.interval(rhos)) if i < j else None)
        body.append(row)
    head = ["training", "mean accuracy", "std of cells", *(f"rho with {n} epochs" for n in lengths)]
    lines = [f"{len(archs)} cells, seed 1", "", *cli.markdown_table(head, body)]
    params = {row["arch"]: row["params"] for row in rows}
    sizes = np.array([params[arch] for arch in archs])
    for (n, x), (m, y) in combinations(zip(lengths, scores), 2):
        rho = correlate.rank_correlation(sizes, y - x)
        lines.append(f"Parameters and what {m} epochs gain over {n}: rho {rho:.2f}.")
    return lines


def recipes_lines(rows, others):
    """The same cells trained as long at another learning rate."""
    table, other = table_of(rows), table_of(others)
    archs = sorted(other)
    x, y = np.array([[table[arch][1], other[arch][1]] for arch in archs]).T
    sizes = np.array([row["params"] for row in sorted(others, key=lambda row: row["arch"])])
    body = [[arch, f"{a:.2f}", f"{b:.2f}"] for arch, a, b in zip(archs, x, y)]
    lines = cli.markdown_table(["cell", "lr 0.05, clipped", "lr 0.1, not clipped"], body)
    rho, sample = correlate.rank_correlation, np.random.default_rng(0)
    sample = sample.integers(len(archs), size=(2000, len(archs)))
    limits = correlate.interval(rho(x[sample], y[sample]))
    last = f"rho {correlate.format_rho(rho(x, y), limits)}; parameters and the gain: rho "
    return [*lines, f"{last}{rho(sizes, y - x):.2f}", ""]


def draw(rows, pilot_archs, path):
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = sorted({row["epochs"] for row in rows})
    length = max(lengths, key=lambda n: len({r["arch"] for r in rows if r["epochs"] == n}))
    main = [row for row in rows if row["epochs"] == length]
    params, table = {row["arch"]: row["params"] for row in main}, table_of(main)
    scores = {arch: statistics.mean(found.values()) for arch, found in table.items()}
    for arch in scores:
        if f"like_{arch}" in scores:
            pair = arch, f"like_{arch}"
            line = [[values[a] for a in pair] for values in (params, scores)]
            left.plot(*line, color="#cccccc", lw=0.8, zorder=0)
    for group, (label, color) in GROUPS.items():
        members = [arch for arch in scores if group_of(arch) == group]
        x, y = ([values[arch] for arch in members] for values in (params, scores))
        left.plot(x, y, "o", color=color, label=label)
        for arch in pilot_archs:
            if group_of(arch) == group:
                found = {n: table_of([r for r in rows if r["epochs"] == n]) for n in lengths}
                known = [n for n in lengths if 1 in found[n].get(arch, {})]
                right.plot(known, [found[n][arch][1] for n in known], "o-", color=color, ms=4)
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
    fewest = min({row["arch"] for row in of} for of in of_length.values())
    print("\n".join(lengths_table(rows)))
    for n, trainings in of_length.items():
        if len(table_of(trainings)) > len(fewest):
            print("\n".join([f"## {n} epochs", "", *compare(trainings)]))
    others = json.loads((HERE / "unclipped.json").read_text())
    print("\n".join(recipes_lines(of_length[8], others)))
    draw(rows, fewest, HERE / "cells.png")


if __name__ == "__main__":
    main()
