"""The tables and the figure of this study, from searches.json and trainings.json; given the folder
of the searches and that of the trainings, from these, which it writes to both files first.

    PYTHONPATH=.:results/cifar10_cells python results/cifar10_objectives/tables.py [SEARCHES RUNS]
"""

import json
import sys
from pathlib import Path

import cli
import compare
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import correlate
import genotypes
import report

HERE = Path(__file__).parent
RECIPE = 16, 0.1, 5.0  # epochs, lr, grad_clip: that of results/cifar10_cells
OBJECTIVES = ["cls", "rot", "col", "jig"]
KEPT = "task dataset seed world_size device date git_commit seconds epoch epochs identity".split()


def write_lines(name, rows):
    lines = ",\n".join(json.dumps(row) for row in rows)
    cli.write_text(HERE / name, f"[\n{lines}\n]\n")


def collect(searches, runs):
    """searches.json, a list of architectures with the alpha history of each, and trainings.json."""
    entries = []
    for path in sorted(Path(searches).glob("*/genotype.json")):
        search = genotypes.read_search(path)
        meta = search["meta"]
        if meta["epoch"] < meta["epochs"]:
            continue
        for epoch in meta["history"]:
            for name in ("alphas", "betas"):
                epoch[name] = epoch[name] and np.round(epoch[name], 5).tolist()
        kept = {name: meta[name] for name in (*KEPT, "history", "evaluation")}
        arch = genotypes.to_entry(genotypes.parse_arch(search, path))
        name = path.parent.name.removeprefix("search_cifar10_")
        entries.append({"id": name, **arch, "meta": {**kept, "versions": meta["versions"]}})
    write_lines("searches.json", entries)
    write_lines("trainings.json", compare.read_runs(runs))


def rows_of(path):
    """{architecture: its training by RECIPE, seed 1}"""
    rows = json.loads(path.read_text())
    return {r["arch"]: r for r in rows if (compare.recipe_of(r), r["seed"]) == (RECIPE, 1)}


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


def order_lines(groups, scores):
    """Whether the order of the objectives repeats over the seeds of their searches."""
    values = [[scores[arch] for arch in members] for members in groups.values()]  # (4, seeds)
    agreement = stats.friedmanchisquare(*values)
    W = agreement.statistic / (len(values[0]) * (len(values) - 1))
    between = stats.f_oneway(*values).pvalue
    rows = []
    for seed, of_seed in enumerate(zip(*values)):
        order = sorted(zip(of_seed, groups), reverse=True)
        rows.append([seed, " > ".join(f"{name} {value:.2f}" for value, name in order)])
    text = f"Kendall's W over the seeds {W:.2f} (p {agreement.pvalue:.2f}); differences between"
    text += f" the objectives by analysis of variance: p {between:.2f}."
    return [*cli.markdown_table(["seed of the search", "order"], rows), text, ""]


def draw(groups, others, scores, params, path):
    """Accuracy against size, and what is above the line of the random cells."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    randoms, published = others
    colors = {"random": "#bbbbbb", "published": "#666666"}
    for label, archs in zip(colors, others):
        x, y = ([values[arch] for arch in archs] for values in (params, scores))
        left.plot(x, y, "x", color=colors[label], label=label)
    x, y = (np.array([values[arch] for arch in randoms]) for values in (params, scores))
    line = stats.linregress(x, y)
    ends = np.array([min(params.values()), max(params.values())])
    left.plot(ends, line.intercept + line.slope * ends, color="#bbbbbb", lw=1)
    ticks = {"random": randoms, "published": published, **groups}
    for k, (name, members) in enumerate(ticks.items()):
        task, _, partial = name.partition(", ")
        color, marker = correlate.STYLES.get(task) or (colors[name], "x")
        style = dict(color=color, mfc="none" if partial else color, ls="none")
        x, y = (np.array([values[arch] for arch in members]) for values in (params, scores))
        above = y - (line.intercept + line.slope * x)
        if name in groups:
            left.plot(x, y, marker=marker, label=name, **style)
        right.plot(above, [k] * len(x), marker=marker, **style)
        right.plot(above.mean(), k, "|", color=color, ms=18, mew=2)
    left.set(xlabel="parameters", ylabel="test accuracy")
    left.legend(fontsize=8)
    right.set_yticks(range(len(ticks)), list(ticks))
    right.invert_yaxis()
    right.set_xlabel("test accuracy above the line of the random cells; |: the mean")
    right.axvline(0, color="#bbbbbb", lw=1)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    cli.save_figure(figure, path)


def main():
    if len(sys.argv) > 1:
        collect(*sys.argv[1:])
    searches = cli.read_json(HERE / "searches.json", [{"id": str, "meta": genotypes.META}])
    cells = rows_of(HERE.parent / "cifar10_cells" / "trainings.json")
    found = rows_of(HERE / "trainings.json")
    trained = {**cells, **found}
    scores = {arch: max(row["top1"]) for arch, row in trained.items()}
    params = {arch: row["params"] for arch, row in trained.items()}
    by_group = {group: [] for group in compare.GROUPS}
    for arch in cells:
        by_group[compare.group_of(arch)].append(arch)
    randoms, published = by_group["random"], by_group["without"] + by_group["with"]
    groups = {}
    for k in (1, 4):
        for task in OBJECTIVES:
            members = [f"{task}_k{k}_s{seed}" for seed in range(3)]
            if all(arch in found for arch in members):
                groups[task + ", partial" * (k > 1)] = members
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
    rows = [compare.difference_row(*pair, scores, params) for pair in pairs]
    print("\n".join(cli.markdown_table(compare.DIFFERENCE, rows)))
    for partial in ("", ", partial"):
        if f"cls{partial}" in groups:
            same = {task: groups[task + partial] for task in OBJECTIVES}
            print("\n".join([f"Order{partial}", "", *order_lines(same, scores)]))
    report.add_titles({Path("runs", entry["id"], "genotype.json"): entry for entry in searches})
    print("\n".join(report.search_table(searches, [])))
    print("\n".join(report.likeness_tables(searches)))
    draw(groups, (randoms, published), scores, params, HERE / "cells.png")


if __name__ == "__main__":
    main()
