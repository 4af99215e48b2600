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
    scores = {label: correlate.of_seeds(column, "score").mean(0) for label, column in table.items()}
    n = len(scores[f"{a} cls"])
    sample = np.random.default_rng(0).integers(n, size=(2000, n))

    def mean_rho(pairs, k):
        """Of the architectures k, (n,) or those of each sample, (2000, n)."""
        return np.mean(
            [correlate.rank_correlation(scores[x][k], scores[y][k]) for x, y in pairs], 0
        )

    def with_interval(function):
        return correlate.format_rho(function(np.arange(n)), correlate.interval(function(sample)))

    rows = []
    for name, tasks in [*((task, [task]) for task in TASKS), ("mean of the three", TASKS)]:
        within = [(f"{x} {task}", f"{x} cls") for task in tasks for x in (a, b)]
        across = [(f"{x} {task}", f"{y} cls") for task in tasks for x, y in ((a, b), (b, a))]
        functions = [lambda k: mean_rho(within, k), lambda k: mean_rho(across, k)]
        functions.append(lambda k: mean_rho(across, k) - mean_rho(within, k))
        rows.append([name, *map(with_interval, functions)])
    rows.append(
        ["cls", None, with_interval(lambda k: mean_rho([(f"{a} cls", f"{b} cls")], k)), None]
    )
    ranked = "ranked by " + ("loss" if by_loss else "accuracy")
    return cli.markdown_table([ranked, "within", "across", "across - within"], rows)


print("\n".join(lines(sys.argv[1:], TASKS) + lines(sys.argv[1:], [])))
