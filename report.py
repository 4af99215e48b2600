"""The report of a study: are labels necessary? Cells searched without labels, with labels, published and random ones.

Reads every genotype.json, result.json and correlations.json below some folders; trainings that differ in nothing but the
seed share a row, those of sweeps are correlate.py's. Writes OUT/report.md, OUT/report.json (its rows) and figures beside
them. What is not there yet is left out.

    python report.py runs/smoke
    python report.py runs/cifar10_small --out results/cifar10_small
"""

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path

from matplotlib.figure import Figure

import cli
import genotypes
import pretext
from cli import InputError, format_seconds, markdown_table, read_json, write_json
from utils import WHERE_AND_HOW

GROUPS = {
    "without labels": "#0072b2",
    "with labels": "#d55e00",
    "published": "#000000",
    "random": "#999999",
    "other": "#cc79a7",
}  # what is compared, and its colour
TARGETS = {
    ("imagenet", "cls"): 0,
    ("cityscapes", "seg"): 1,
}  # what the paper trained for: the columns of PAPER
PAPER = {  # {searched on: {by: (ImageNet top-1, Cityscapes mIoU)}}, with the standard deviation where it is known
    "imagenet": {
        "cls": ("76.3 ± 0.06", "73.6 ± 0.31"),
        "rot": ("75.8 ± 0.18", "73.6"),
        "col": ("75.7 ± 0.12", "72.2"),
        "jig": ("75.9 ± 0.15", "73.1"),
    },
    "imagenet22k": {
        "cls": ("75.9", "72.4"),
        "rot": ("75.7", "72.9"),
        "col": ("75.9", "73.6"),
        "jig": ("75.9", "73.1"),
    },
    "cityscapes": {
        "seg": ("75.8", "72.4"),
        "rot": ("75.9", None),
        "col": ("75.2", None),
        "jig": ("75.5", "74.1"),
    },
    "cells": {"darts_v2": ("74.9 ± 0.08", "72.6 ± 0.55"), "pcdarts_in1k": ("75.8", None)},
}
PAPER_RHO = {  # of a task on CIFAR-10 with classification on ImageNet; within a data set "typically higher than 0.8"
    "darts": {"rot": 0.82, "col": 0.77, "jig": 0.87, "cls": 0.90},
    "nasbench101": {"rot": 0.74, "col": 0.69, "jig": 0.79, "cls": 0.80},
}
UNDECIDED = 0.95  # entropy of the alphas above which a cell is little more than a draw


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="A page with figures about the searches and trainings below some folders."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the first folder)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read(folders):
    """{folder: content} of searches, of trainings outside of sweeps, and of correlations; how many of a sweep failed."""
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.json")})

    def contents(name):
        return {path.parent: read_json(path) for path in paths if path.name == name}

    searches = {
        folder: entry
        for folder, entry in contents("genotype.json").items()
        if "history" in entry.get("meta", {})
    }
    sweeps = contents("sweep.json").keys()
    results = {
        folder: result
        for folder, result in contents("result.json").items()
        if not sweeps & set(folder.parents)
    }
    if not searches and not results:
        raise InputError(
            f"no genotype.json of a search and no result.json of a training below {', '.join(folders)}"
        )
    return searches, results, contents("correlations.json"), len(contents("failed.json"))


def title(search):
    return f"{search['meta']['task']} on {search['meta']['dataset']}, seed {search['meta']['seed']}"


def describe(arch, genotype, searches):
    """(group, name, seconds of the search, the paper's numbers) of a cell that was trained."""
    for folder, search in searches.items():
        if folder.name == Path(arch).parent.name and search["genotype"] == genotype:
            task, dataset, seconds = (search["meta"][key] for key in ("task", "dataset", "seconds"))
            group = "with labels" if pretext.TASKS[task].targets else "without labels"
            return group, title(search), seconds, PAPER.get(dataset, {}).get(task)
    if arch in genotypes.CELLS:
        _, dataset, task = arch.split("_") if arch.startswith("unnas") else ("", "cells", arch)
        return "published", arch, None, PAPER[dataset].get(task)
    group = "random" if ".json:" in arch else "other"
    return group, f"{group} {genotypes.short_name(arch)}", None, None


def make_tables(results, searches):
    """{what trainings have in common, as JSON: rows}, a row for each architecture; the best first."""
    tables = {}
    for folder, result in results.items():
        try:
            options, column = result["args"], TARGETS.get((result["dataset"], result["task"]))
            group, name, search_seconds, paper = describe(
                options["arch"], result["genotype"], searches
            )
            keys = (
                "task",
                "dataset",
                "seed",
                "metric",
                "higher_is_better",
                "best",
                "params",
                "macs",
                "seconds",
            )
            run = {key: result[key] for key in keys} | {
                "group": group,
                "cell": name,
                "search_seconds": search_seconds,
                "width": options["width"],
                "epochs": len(result["epochs"]),
                "paper": paper[column] if paper and column is not None else None,
                "how": how(result),
            }
            without = (
                WHERE_AND_HOW | {"seed"} | ({"width"} if options["max_macs"] else set())
            )  # chosen for each cell
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder}/result.json: not a result of train.py ({type(error).__name__} {error})"
            ) from None
        recipe = json.dumps({key: value for key, value in options.items() if key not in without})
        tables.setdefault(recipe, {}).setdefault((group, name), []).append(run)
    for recipe, cells in tables.items():
        rows = [merge(runs) for runs in cells.values()]
        tables[recipe] = sorted(
            rows, key=lambda row: row["mean"], reverse=rows[0]["higher_is_better"]
        )
    return tables


def merge(runs):
    """One row of the runs of a cell."""
    scores, seeds, seconds = ([run[key] for run in runs] for key in ("best", "seed", "seconds"))
    return {
        **runs[0],
        "scores": scores,
        "seeds": seeds,
        "seconds": statistics.mean(seconds),
        "mean": statistics.mean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "how": sorted({run["how"] for run in runs}),
    }


def how(run):
    """What a run ran on, of its result or its search's meta."""
    n = run["world_size"]
    return (
        f"{run['date']}: torch {run['versions']['torch']}, {run['device']}, {n} process{'es' * (n > 1)}, "
        f"commit {run['git_commit']}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Text


def plus_minus(values):
    """Mean and, of two or more, standard deviation."""
    return f"{statistics.mean(values):.2f}" + (
        f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    )


def settings(options):
    """One line about the options of several runs; what is off or None is not in it."""
    values = {
        name: list(dict.fromkeys(str(some.get(name)) for some in options if some.get(name)))
        for name in options[0]
    }
    shown = values.keys() - WHERE_AND_HOW - {"task", "dataset", "seed", "recipe"}
    return ", ".join(
        f"{name} {' / '.join(some)}" for name, some in values.items() if name in shown and some
    )


def groups_of(rows):
    """{group: its cells' means}"""
    means = {group: [row["mean"] for row in rows if row["group"] == group] for group in GROUPS}
    return {group: some for group, some in means.items() if some}


def compare_groups(rows):
    """A row for each group: mean and standard deviation over its cells."""
    lines, best = [], max if rows[0]["higher_is_better"] else min
    for group, means in groups_of(rows).items():
        paper = [
            float(row["paper"].split()[0]) for row in rows if row["group"] == group and row["paper"]
        ]
        paper = f"{statistics.mean(paper):.1f} ({len(paper)})" if paper else None
        lines.append([group, len(means), plus_minus(means), f"{best(means):.2f}", paper])
    return markdown_table(
        ["cells", "number", f"{rows[0]['metric']}, mean ± std over cells", "best", "paper (cells)"],
        lines,
    )


def what_it_shows(rows):
    """What the numbers can and cannot tell, from the numbers themselves."""
    variances = [row["std"] ** 2 for row in rows if row["std"] is not None]
    if variances:
        seeds = " or ".join(map(str, sorted({len(row["seeds"]) for row in rows})))
        std = math.sqrt(statistics.mean(variances))
        yield f"- {seeds} seeds for each cell; a training varies by {std:.2f} (standard deviation over seeds, all cells)."
    else:
        yield "- One seed for each cell: how much a training varies is not known, so no two cells can be told apart."
    groups = groups_of(rows)
    freedom = sum(len(means) - 1 for means in groups.values())
    if not freedom:
        yield "- One cell in each group: how much cells vary is not known, so no two groups can be told apart."
        return
    squares = sum(statistics.pvariance(means) * len(means) for means in groups.values())
    ours = groups.pop("without labels", [])
    for group, theirs in groups.items() if ours else ():
        difference = statistics.mean(ours) - statistics.mean(theirs)
        error = 2 * math.sqrt(squares / freedom * (1 / len(ours) + 1 / len(theirs)))
        verdict = "more than" if abs(difference) > error else "less than"
        yield (
            f"- Searched without labels against {group}: {difference:+.2f} on average, {verdict} two standard errors "
            f"({error:.2f}) by how much the cells of one group vary."
        )


def what_searches_show(searches):
    entropy = [e for search in searches.values() for e in search["meta"]["history"][-1]["entropy"]]
    objectives = [
        (search["meta"]["dataset"], search["meta"]["task"]) for search in searches.values()
    ]
    text = ""
    if min(entropy) > UNDECIDED:
        text = " The searches have hardly decided: their cells are little more than random ones."
    elif max(entropy) > UNDECIDED:
        text = f" Cells with more than {UNDECIDED} are little more than random ones."
    yield (
        f"- Entropy of the alphas at the end: {min(entropy):.3f} to {max(entropy):.3f} (1: all operations alike, 0: "
        f"decided).{text}"
    )
    if len(set(objectives)) == len(objectives):
        yield (
            "- One search for each objective: its luck is part of every difference between objectives, and no standard "
            "deviation here holds it."
        )
    unfinished = [title(s) for s in searches.values() if s["meta"]["epoch"] < s["meta"]["epochs"]]
    if unfinished:
        yield f"- Not finished yet: {', '.join(unfinished)}."


def correlation_lines(spaces):
    """Rank correlations with classification, the paper's beside them."""
    rows, wide = [], 0
    for space, part in spaces.items():
        for pair in part["pairs"]:
            (source, task), (target, target_task), interval = (
                pair["x"],
                pair["y"],
                pair["rho_interval"],
            )
            if target_task != "cls" or pair["rho"] is None:
                continue
            plain = [name.lower().replace("-", "") for name in (source, target)]
            paper = PAPER_RHO[space].get(task) if plain == ["cifar10", "imagenet"] else None
            if plain in (["cifar10"] * 2, ["imagenet"] * 2):
                paper = "typically > 0.8"
            wide += interval is None or interval[0] <= 0 <= interval[1]
            interval = interval and "[{:.2f}, {:.2f}]".format(*interval)
            rows.append(
                [
                    space,
                    f"{source} {task}",
                    f"{target} cls",
                    pair["n"],
                    f"{pair['rho']:.2f}",
                    interval,
                    paper,
                ]
            )
    lines = markdown_table(
        ["space", "predictor", "target", "n", "Spearman's rho", "95% interval", "paper"], rows
    )
    n = " and ".join(f"{part['n']} architectures of {space}" for space, part in spaces.items())
    return [
        *lines,
        f"- {n}; {wide} of {len(rows)} intervals hold 0: these cannot be told from no correlation.",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def draw_accuracies(rows, path):
    """A line for each cell: every seed, the mean, and the paper's number."""
    figure = Figure(figsize=(7.5, 1.3 + 0.3 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(rows):
        color = GROUPS[row["group"]]
        ax.plot(row["scores"], [y] * len(row["scores"]), "o", color=color, ms=4, alpha=0.5)
        ax.plot(row["mean"], y, "D", color=color, ms=8, label=row["group"])
        if row["paper"]:
            ax.plot(
                float(row["paper"].split()[0]),
                y,
                "*",
                color=color,
                ms=11,
                mfc="white",
                label="the paper's number",
            )
    ax.set_yticks(range(len(rows)), [row["cell"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel(
        f"{rows[0]['metric']} of {rows[0]['task']} on {rows[0]['dataset']}: each seed, and their mean"
    )
    ax.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=150)


def main(args):
    searches, results, correlations, failed = read(args.folders)
    tables = make_tables(results, searches)
    out = Path(args.out or args.folders[0])
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Are labels necessary for this search?", ""]

    # --- trained cells
    for k, (recipe, rows) in enumerate(tables.items(), start=1):
        first, name = rows[0], f"accuracy_{k}.png"
        lines += [
            f"## Trained for {first['task']} on {first['dataset']}",
            "",
            *compare_groups(rows),
        ]
        lines += [*what_it_shows(rows), "", f"![Accuracy of each cell]({name})", ""]
        draw_accuracies(rows, out / name)
        head = [
            "cells",
            "cell",
            f"{first['metric']}, best epoch",
            "seeds",
            "params, M",
            "MACs, M",
            "width",
            "search",
            "training",
            "paper",
        ]
        lines += markdown_table(
            head,
            [
                [
                    r["group"],
                    r["cell"],
                    plus_minus(r["scores"]),
                    len(r["seeds"]),
                    f"{r['params'] / 1e6:.3f}",
                    f"{r['macs'] / 1e6:.1f}",
                    r["width"],
                    r["search_seconds"] and format_seconds(r["search_seconds"]),
                    format_seconds(r["seconds"]),
                    r["paper"],
                ]
                for r in rows
            ],
        )
        lines += [f"Recipe: {settings([json.loads(recipe)])}.", ""]

    # --- searches
    if searches:
        histories = {title(search): search["meta"]["history"] for search in searches.values()}
        genotypes.draw_history(histories, out / "alphas.png")
        lines += [
            "## Searches",
            "",
            *what_searches_show(searches),
            "",
            "![Alphas by epoch](alphas.png)",
            "",
        ]
        for folder, search in searches.items():
            name = f"cell_{folder.name.removeprefix('search_')}.png"
            genotypes.draw(genotypes.parse_arch(search, folder), out / name, f"{title(search)}:")
            lines += [f"![Found by {title(search)}]({name})", ""]
        logs = [folder / "log.jsonl" for folder in searches]
        options = [
            json.loads(log.read_text().splitlines()[0])["args"] for log in logs if log.exists()
        ]
        lines += [f"Settings: {settings(options)}.", ""] if options else []

    # --- sweeps
    for folder, content in correlations.items():
        lines += ["## Rank correlations", "", *correlation_lines(content["spaces"])]
        lines += [f"- {failed} trainings failed and are not in these numbers."] * bool(failed) + [
            ""
        ]
        for figure in sorted([*folder.glob("within_*.png"), *folder.glob("across_*.png")]):
            if folder.resolve() != out.resolve():
                shutil.copyfile(figure, out / figure.name)
            lines += [f"![Accuracies of two tasks]({figure.name})", ""]

    # --- how it was run
    hows = {how(search["meta"]) for search in searches.values()}
    hows |= {text for rows in tables.values() for row in rows for text in row["how"]}
    lines += ["## Run", "", *[f"- {text}" for text in sorted(hows)]]
    answer = ", ".join(f"{task} {numbers[0]}" for task, numbers in PAPER["imagenet"].items())
    lines += [
        "",
        "Numbers are percent on the evaluation images, of each training's best epoch. The paper's: its own found "
        "cells, trained on ImageNet for 250 epochs or on Cityscapes for 2700. Its answer, ImageNet top-1 of the cells "
        f"found on ImageNet: {answer}; darts_v2 {PAPER['cells']['darts_v2'][0]}.",
    ]
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(out / "report.json", [row for rows in tables.values() for row in rows])
    print("\n".join(line for line in lines if not line.startswith("![")))
    print(f"\n{out / 'report.md'}")


if __name__ == "__main__":
    cli.run(main, parse_args)
