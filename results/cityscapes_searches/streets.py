"""The tables and the figure of this study, from its searches.json and trainings.json; given the
folder of the searches and that of the trainings, it writes those two files first.

    export PYTHONPATH=.:results/cifar10_cells:results/cifar10_objectives
    python results/cityscapes_searches/streets.py [SEARCHES RUNS]
"""

import sys
from pathlib import Path

import cli
import compare
import numpy as np
import tables

import genotypes
import report

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "cityscapes_cells" / "trainings.json"  # some of them for as long
RECIPE = 60, 0.1, 5.0  # epochs, lr, grad_clip
OBJECTIVES = ["seg", "rot", "col", "jig"]


def random_like(cells):
    return [f"like_{arch}" for arch in cells]


def difference_table(groups, published, scores, params):
    without, found = sum([*groups.values()][1:], []), sum(groups.values(), [])
    randoms, rows = random_like(found), []
    for name, cells in [("found", found), ("without labels", without)]:
        row = f"{name} - random of its size", cells, random_like(cells)
        rows.append(compare.difference_row(*row, scores, params, pairs=True))
    pairs = [("found - random", found, randoms), ("without labels - random", without, randoms)]
    pairs.append(("without labels - with labels", without, groups["seg"]))
    pairs.append(("found - published", found, published))
    rows += [compare.difference_row(*pair, scores, params) for pair in pairs]
    return cli.markdown_table(compare.DIFFERENCE, rows)


def supernet_row(task, searches):
    """What the supernets of one objective reach on the evaluation images."""
    metrics = [s["meta"]["evaluation"] for s in searches if s["meta"]["task"] == task]
    name = "miou" if task == "seg" else "top1"
    shown = compare.METRICS[name]
    grey = f"{metrics[0]['grey']:.1f}" if "grey" in metrics[0] else None
    return [task, shown, ", ".join(f"{metric[name]:.1f}" for metric in metrics), grey]


def main():
    if len(sys.argv) > 1:
        tables.collect(HERE, *sys.argv[1:])
    searches = cli.read_json(HERE / "searches.json", [{"id": str, "meta": genotypes.META}])
    others = tables.rows_of(PUBLISHED, RECIPE)
    trained, published = tables.rows_of(HERE / "trainings.json", RECIPE) | others, [*others]
    scores = {arch: max(row["miou"]) for arch, row in trained.items()}
    late = {arch: np.mean(row["miou"][-10:]) for arch, row in trained.items()}
    params = {arch: row["params"] for arch, row in trained.items()}
    groups = {task: [f"{task}_k1_s{seed}" for seed in range(3)] for task in OBJECTIVES}
    randoms = random_like(sum(groups.values(), []))

    print("\n".join(tables.objective_table(groups, randoms, scores, params)))
    print("\n".join(difference_table(groups, published, scores, params)))
    print("By the mean of the last ten epochs:\n")
    print("\n".join(difference_table(groups, published, late, params)))
    print("\n".join(tables.order_lines(groups, scores)))
    report.add_titles({Path("runs", entry["id"], "genotype.json"): entry for entry in searches})
    rows = [supernet_row(task, searches) for task in OBJECTIVES]
    print("\n".join(cli.markdown_table(["supernet", "metric", "each seed", "always grey"], rows)))
    print("\n".join(report.search_table(searches, [])))
    print("\n".join(report.likeness_tables(searches)))
    print("\n".join(tables.of_one_objective(searches)))
    tables.draw(groups, (randoms, published), scores, params, HERE / "cells.png", "mIoU")


main()
