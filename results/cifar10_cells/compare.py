"""The tables and figures of a study of these cells, this one or that on street scenes, from its
trainings.json; given the folder of the runs, from these, which it writes to trainings.json first.

    PYTHONPATH=. python results/cifar10_cells/compare.py results/cifar10_cells [runs/cells]
"""

import json
import statistics
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import cli
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import correlate
import genotypes

METRICS = {"top1": "accuracy", "miou": "mIoU"}  # one of them in each row, of every epoch
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
        row |= {name: result["args"][name] for name in ("epochs", "lr", "grad_clip")}
        row |= {name: result[name] for name in ("params", "macs")}
        row |= {result["metric"]: [epoch[result["metric"]] for epoch in result["epochs"]]}
        row |= {name: result[name] for name in ("seconds", "device", "date", "git_commit")}
        rows.append(row)
    return sorted(rows, key=lambda row: (recipe_of(row), row["seed"], row["arch"]))


def write_lines(path, rows):
    lines = ",\n".join(json.dumps(row) for row in rows)
    cli.write_text(path, f"[\n{lines}\n]\n")


def metric_of(row):
    (metric,) = METRICS.keys() & row.keys()
    return metric


def recipe_of(row):
    return row["epochs"], row["lr"], row["grad_clip"]


def name_of(recipe):
    epochs, lr, grad_clip = recipe
    return f"{epochs} epochs, lr {lr}" + ("" if grad_clip else ", not clipped")


def paired(differences):
    """Mean, and its 95% interval by Student's t."""
    margin = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return np.mean(differences) + np.array([0, -margin, margin])


def welch(a, b):
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return np.array([np.mean(a) - np.mean(b), interval.low, interval.high])


def without_one(first, second, pairs):
    """Two groups of cells without one cell, or without one pair of cells."""
    for k in range(len(first)):
        yield first[:k] + first[k + 1 :], second[:k] + second[k + 1 :] if pairs else second
    for k in range(0 if pairs else len(second)):
        yield first, second[:k] + second[k + 1 :]


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
    """{architecture: {seed: best accuracy, or mIoU}}"""
    table = {}
    for row in rows:
        table.setdefault(row["arch"], {})[row["seed"]] = max(row[metric_of(row)])
    return table


def common_seeds(table):
    return sorted(set.intersection(*(set(scores) for scores in table.values())))


def mean_scores(table):
    """{architecture: mean over the seeds that all have}"""
    seeds = common_seeds(table)
    return {arch: statistics.mean(found[seed] for seed in seeds) for arch, found in table.items()}


DIFFERENCE = ["difference", "cells", "points [95%]", "leave one out"]
DIFFERENCE += ["at equal parameters [95%]", "leave one out"]


def difference_row(name, first, second, scores, params, pairs=False):
    """By the cells of two groups, or of pairs; and the least and the largest difference if one
    cell, or one pair, is left out."""

    def plain(first, second):
        a, b = (np.array([scores[arch] for arch in group]) for group in (first, second))
        return paired(a - b) if pairs else welch(a, b)

    row = [name, f"{len(first)} pairs" if pairs else f"{len(first)}, {len(second)}"]
    for difference in (plain, partial(at_equal_size, scores, params)):
        rest = [difference(*groups)[0] for groups in without_one(first, second, pairs)]
        row += [text(difference(first, second)), f"{min(rest):+.2f} to {max(rest):+.2f}"]
    return row


def compare(rows, metric):
    """Lines about the trainings of one recipe, all cells with the same seeds."""
    table, params = table_of(rows), {row["arch"]: row["params"] for row in rows}
    seeds, scores = common_seeds(table), mean_scores(table)
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
    head = ["cells", "number", f"{metric}, mean [95%]", "std of cells", "params, thousands"]
    lines += cli.markdown_table(head, body)

    released = [arch for arch in archs["with"] if arch.startswith("unnas")]
    differences = [("without labels", archs["without"]), ("with labels", archs["with"])]
    differences.append(("published", archs["without"] + archs["with"]))
    body = []
    for name, found in differences:
        partners = [f"like_{arch}" for arch in found]
        row = f"{name} - random of its size", found, partners
        body.append(difference_row(*row, scores, params, pairs=True))
        body.append(difference_row(f"{name} - random", found, archs["random"], scores, params))
    for more, found in (("", archs["with"]), (", the paper's own", released)):
        name = f"without labels - with labels{more}"
        body.append(difference_row(name, archs["without"], found, scores, params))
    leads = {a: scores[a] - scores[f"like_{a}"] for a in archs["without"] + archs["with"]}
    row = "their leads over random ones of their size", archs["without"], archs["with"]
    body.append(difference_row(*row, leads, params))
    lines += cli.markdown_table(DIFFERENCE, body)
    if len(seeds) > 1:
        within = np.sqrt(np.mean([np.var([*t.values()], ddof=1) for t in table.values()]))
        pairs = combinations(seeds, 2)
        rhos = [stats.spearmanr(*([t[s] for t in table.values()] for s in p))[0] for p in pairs]
        lines.append(f"Seeds of one cell: std {within:.2f}, rho between two {np.mean(rhos):.2f}.")
    x, y = np.array([[params[arch], scores[arch]] for arch in scores]).T
    lines.append(f"Parameters and {metric}: rho {stats.spearmanr(x, y)[0]:.2f}.")
    return lines


def rho_text(x, y):
    """Spearman's rho of two lists of accuracies, with its 95% interval over the cells."""
    sample = np.random.default_rng(0).integers(len(x), size=(2000, len(x)))
    limits = correlate.interval(correlate.rank_correlation(x[sample], y[sample]))
    return correlate.format_rho(correlate.rank_correlation(x, y), limits)


def compare_orders(tables, params):
    """Lines about how alike {recipe: table} order the cells that they have in common."""
    archs, body = sorted(params, key=params.get), []
    for arch in archs:
        if sum(arch in table for table in tables.values()) < min(3, len(tables)):
            continue  # as most have few recipes
        scores = [table[arch][1] if arch in table else None for table in tables.values()]
        body.append([arch, params[arch], *(score and f"{score:.2f}" for score in scores)])
    lines = cli.markdown_table(["cell", "params", *map(name_of, tables)], body)
    body = []
    for a, b in combinations(tables, 2):
        both = [arch for arch in archs if arch in tables[a] and arch in tables[b]]
        if len(both) < 5:
            continue
        x, y = (np.array([tables[recipe][arch][1] for arch in both]) for recipe in (a, b))
        sizes = np.array([params[arch] for arch in both])
        row = [name_of(a), name_of(b), len(both), rho_text(x, y), rho_text(sizes, y - x)]
        body.append([*row, f"{np.mean(y - x):.2f}"])
    head = ["recipe", "another", "cells", "rho of accuracies", "rho of parameters and gain"]
    return lines + (cli.markdown_table([*head, "mean gain"], body) if body else [])


def draw_sizes(ax, tables, params, main, metric):
    """The metric against size, by the main recipe."""
    scores = mean_scores(tables[main])
    for arch in scores:
        if f"like_{arch}" in scores:
            pair = arch, f"like_{arch}"
            line = [[values[a] for a in pair] for values in (params, scores)]
            ax.plot(*line, color="#cccccc", lw=0.8, zorder=0)
    for group, (label, color) in GROUPS.items():
        members = [arch for arch in scores if group_of(arch) == group]
        x, y = ([values[arch] for arch in members] for values in (params, scores))
        ax.plot(x, y, "o", color=color, label=label)
    seeds = ", ".join(map(str, common_seeds(tables[main])))
    ax.set(xlabel="parameters", ylabel=f"{metric}, {name_of(main)}, seed {seeds}")
    ax.legend(fontsize=8)


def draw_lengths(ax, tables, main, metric):
    """The metric against the length of the training, of cells with several recipes."""
    for lr, style in ((0.05, "o:"), (main[1], "o-")):
        same = {r[0]: table for r, table in tables.items() if r[1:] == (lr, main[2])}
        for arch in tables[main]:
            if len(same) > 1 and all(arch in table for table in same.values()):
                line = [*same], [table[arch][1] for table in same.values()]
                ax.plot(*line, style, color=GROUPS[group_of(arch)][1], ms=4)
    dotted = " (dotted: lr 0.05)" if any(recipe[1] == 0.05 for recipe in tables) else ""
    ax.set(xlabel=f"epochs of the training{dotted}", ylabel=f"{metric}, seed 1")
    ax.set_xscale("log", base=2)
    lengths = sorted({recipe[0] for recipe in tables})
    ax.set_xticks(lengths, lengths)


def main():
    study = Path(sys.argv[1])
    if len(sys.argv) > 2:
        write_lines(study / "trainings.json", read_runs(sys.argv[2]))
    trainings, by_recipe = json.loads((study / "trainings.json").read_text()), {}
    for row in trainings:
        by_recipe.setdefault(recipe_of(row), []).append(row)
    tables = {recipe: table_of(rows) for recipe, rows in by_recipe.items()}
    params = {row["arch"]: row["params"] for row in trainings}
    metric = METRICS[metric_of(trainings[0])]
    complete = [recipe for recipe, table in tables.items() if len(table) == len(params)]
    for recipe in complete:
        print("\n".join([f"## {name_of(recipe)}", "", *compare(by_recipe[recipe], metric), ""]))
    several = len(tables) > 1
    figure = Figure(figsize=(11 if several else 5.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + several, squeeze=False)[0]
    draw_sizes(axes[0], tables, params, complete[-1], metric)
    if several:
        print("\n".join(["## Orders, seed 1", "", *compare_orders(tables, params)]))
        draw_lengths(axes[1], tables, complete[-1], metric)
    for ax in axes:
        ax.grid(alpha=0.3)
    cli.save_figure(figure, study / "cells.png")


if __name__ == "__main__":
    main()
