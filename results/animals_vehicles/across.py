"""How well the tasks predict classification on their own images and on the others: mean rho within
and across two data sets, and the difference, with 95% intervals over the architectures.

PYTHONPATH=. python results/animals_vehicles/across.py animals=FOLDER vehicles=FOLDER
"""

import sys

import cli
import numpy as np

import correlate

TASKS = ["rot", "col", "jig"]


def lines(folders, by_loss):
    columns = correlate.read(folders, "best", by_loss)["darts"]
    table, _ = correlate.common_table("darts", columns)
    a, b = dict.fromkeys(dataset for dataset, _ in columns)
    n = len(table[f"{a} cls"])
    sample = np.random.default_rng(0).integers(n, size=(2000, n))
    archs = np.vstack([np.arange(n), sample])  # all of them, then those of each sample
    seeds = {label: correlate.of_seeds(column, "score") for label, column in table.items()}
    scores = {a: x.mean(0).round(9)[archs] for a, x in seeds.items()}  # (1 + 2000, n)

    def rhos(tasks, targets):  # of the tasks on a and b with cls on the targets, (1 + 2000,)
        pairs = [(f"{x} {task}", f"{y} cls") for task in tasks for x, y in zip((a, b), targets)]
        return np.mean([correlate.rank_correlation(scores[x], scores[y]) for x, y in pairs], axis=0)

    def text(values):
        return correlate.format_rho(values[0], correlate.interval(values[1:]))

    rows = []
    for name, tasks in [*((task, [task]) for task in TASKS), ("mean of the three", TASKS)]:
        within, across = rhos(tasks, (a, b)), rhos(tasks, (b, a))
        rows.append([name, text(within), text(across), text(across - within)])
    rows.append(["cls", None, text(rhos(["cls"], (b, a))), None])
    ranked = "ranked by " + ("loss" if by_loss else "accuracy")
    return cli.markdown_table([ranked, "within", "across", "across - within"], rows)


print("\n".join(lines(sys.argv[1:], TASKS) + lines(sys.argv[1:], [])))
