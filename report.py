"""The page of a study: cells searched without labels, with labels, published and random ones.

Reads every genotype.json, result.json and correlations.json below some folders, but the trainings
of sweeps, which are correlate.py's. Writes OUT/report.md, OUT/report.json (a row for each trained
cell) and figures. What is not there yet is left out.

    python report.py runs/cifar10_small --out results/cifar10_small
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import cli
import correlate
import genotypes
import visualize
from cli import InputError, format_seconds, markdown_table

LABELLED = {"cls", "seg"}
# fmt: off
COLORS = {"without labels": "#0072b2", "with labels": "#d55e00", "published": "#000000",
          "random": "#999999", "other": "#cc79a7"}
TARGETS = ["cls on imagenet", "seg on cityscapes"]  # what the cells of PAPER are trained for
PAPER = {  # ± standard deviation where it is known
    "cls on imagenet": ("76.3 ± 0.06", "73.6 ± 0.31"), "rot on imagenet": ("75.8 ± 0.18", "73.6"),
    "col on imagenet": ("75.7 ± 0.12", "72.2"), "jig on imagenet": ("75.9 ± 0.15", "73.1"),
    "cls on imagenet22k": ("75.9", "72.4"), "rot on imagenet22k": ("75.7", "72.9"),
    "col on imagenet22k": ("75.9", "73.6"), "jig on imagenet22k": ("75.9", "73.1"),
    "seg on cityscapes": ("75.8", "72.4"), "rot on cityscapes": ("75.9", None),
    "col on cityscapes": ("75.2", None), "jig on cityscapes": ("75.5", "74.1"),
    "darts_v2": ("74.9 ± 0.08", "72.6 ± 0.55"), "pcdarts_in1k": ("75.8", None),
}
PAPER_RHO = {  # of a task on CIFAR-10 with classification on ImageNet; > 0.8 within a data set
    "darts": {"rot": 0.82, "col": 0.77, "jig": 0.87, "cls": 0.90},
    "nasbench101": {"rot": 0.74, "col": 0.69, "jig": 0.79, "cls": 0.80},
}
# fmt: on


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="A page about searches and trainings.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="what the page is about")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: the first folder)")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Reading


def read(folders, name) -> dict:
    """{folder: content of its file of that name}"""
    paths = {path for folder in folders for path in Path(folder).rglob(name)}
    return {path.parent: cli.read_json(path) for path in sorted(paths)}


def objective(run):
    return f"{run['task']} on {run['dataset']}"


def title(meta):
    return f"{objective(meta)}, seed {meta['seed']}"


def hardware(run):
    where = f"torch {run['versions']['torch']}, {run['device']}"
    processes = "1 process" if run["world_size"] == 1 else f"{run['world_size']} processes"
    return f"{run['date']}: {where}, {processes}, commit {run['git_commit']}"


def describe(result, searches):
    """(group, name, key in PAPER, seconds of the search) of a trained cell"""
    arch = result["args"]["arch"]
    for folder, search in searches.items():
        if folder.name == Path(arch).parent.name and search["genotype"] == result["genotype"]:
            meta = search["meta"]
            group = "with labels" if meta["task"] in LABELLED else "without labels"
            return group, title(meta), objective(meta), meta["seconds"]
    if arch in genotypes.CELLS:
        _, dataset, task = arch.split("_") if "unnas" in arch else ("", "", "")
        return "published", arch, f"{task} on {dataset}" if task else arch, None
    group = "random" if ".json:" in arch else "other"
    return group, f"{group} {genotypes.short_name(arch)}", None, None


def make_row(trainings, group, cell, paper, search_seconds) -> dict:
    """What report.json holds of a cell; its trainings differ in the seed."""
    first, scores = trainings[0], [training["best"] for training in trainings]
    fields = "task dataset seed metric higher_is_better best params macs".split()
    return {field: first[field] for field in fields} | {
        "seconds": statistics.mean(training["seconds"] for training in trainings),
        "group": group,
        "cell": cell,
        "search_seconds": search_seconds,
        "width": first["identity"]["width"],
        "epochs": len(first["epochs"]),
        "paper": dict(zip(TARGETS, PAPER.get(paper, ()))).get(objective(first)),
        "how": sorted({hardware(training) for training in trainings}),
        "scores": scores,
        "seeds": [training["seed"] for training in trainings],
        "mean": statistics.mean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
    }


def make_tables(results, searches) -> dict:
    """{recipe, as JSON: rows}, a row for each cell, the best first"""
    tables = {}
    for folder, result in results.items():
        with correlate.parsing(folder / "result.json"):
            cell = describe(result, searches)
            make_row([result], *cell)  # errors name the file
            recipe = json.dumps(correlate.recipe(result["identity"]))
        tables.setdefault(recipe, {}).setdefault(cell, []).append(result)
    for recipe, cells in tables.items():
        rows = [make_row(trainings, *cell) for cell, trainings in cells.items()]
        best_first = rows[0]["higher_is_better"]
        tables[recipe] = sorted(rows, key=lambda row: row["mean"], reverse=best_first)
    return tables


# --------------------------------------------------------------------------------------------------
# Tables


def mean_std(values):
    std = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{std}"


def group_table(rows) -> list:
    """Intervals of the mean by Student's t, the cells being draws of their group: a bootstrap's of
    two to five values are far too narrow. Below, the least significant difference (5%) of the two
    largest groups."""
    lines, sizes, residuals = [], [], []
    for group in COLORS:
        means = np.array([row["mean"] for row in rows if row["group"] == group])
        papers = [row["paper"] for row in rows if row["group"] == group and row["paper"]]
        if not len(means):
            continue
        interval, n, mean = None, len(means), means.mean()
        if n > 1:
            margin = stats.t.ppf(0.975, n - 1) * stats.sem(means)
            interval = f"[{mean - margin:.2f}, {mean + margin:.2f}]"
        best = means.max() if rows[0]["higher_is_better"] else means.min()
        paper = np.mean([float(paper.split()[0]) for paper in papers]) if papers else None
        paper = paper and f"{paper:.1f} ({len(papers)})"
        lines.append([group, n, mean_std(means.tolist()), interval, f"{best:.2f}", paper])
        sizes.append(n)
        residuals += (means - mean).tolist()
    metric = f"{rows[0]['metric']}, mean ± std over cells"
    head = ["cells", "number", metric, "95% interval", "best", "paper (cells)"]

    stds = [row["std"] for row in rows if row["std"] is not None]
    std = f"{np.sqrt(np.mean(np.square(stds))):.2f} (std over seeds)" if stds else "?"
    seeds = "-".join(str(n) for n in sorted({len(row["seeds"]) for row in rows}))
    freedom, line = len(rows) - len(sizes), f"With {seeds} seeds a training varies by {std}"
    if freedom and len(sizes) > 1:
        spread = np.sqrt(np.sum(np.square(residuals)) / freedom)
        n, m = sorted(sizes)[-2:]
        least = stats.t.ppf(0.975, freedom) * spread * np.sqrt(1 / n + 1 / m)
        line += f" and cells of one group by {spread:.2f}: differences between groups below "
        line += f"{least:.2f} cannot be told apart."
    else:
        line += "; without two groups, one of them of several cells, nothing can be decided."
    return [*markdown_table(head, lines), line, ""]


def cell_table(rows):
    head = ["cells", "cell", f"{rows[0]['metric']}, best epoch", "seeds", "params, M", "MACs, M"]
    lines = []
    for row in rows:
        search = row["search_seconds"] and format_seconds(row["search_seconds"])
        line = [row["group"], row["cell"], mean_std(row["scores"]), len(row["seeds"])]
        line += [f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.1f}", row["width"], search]
        lines.append([*line, format_seconds(row["seconds"]), row["paper"]])
    return markdown_table([*head, "width", "search", "training", "paper"], lines)


def search_table(metas):
    """Entropy of the alphas, skips and convolutions: of the normal / of the reduction cell"""
    entropy = "entropy, normal / reduction"
    head = ["objective", "seed", "epochs", entropy, "skips", "convolutions", "search time"]
    lines = []
    for meta in metas:
        last = meta["history"][-1]
        line = [objective(meta), meta["seed"], f"{meta['epoch']}/{meta['epochs']}"]
        line += ["{:.3f} / {:.3f}".format(*last["entropy"]), "{} / {}".format(*last["skips"])]
        line += ["{} / {}".format(*last["convs"]), format_seconds(meta["seconds"])]
        lines.append(line)
    return markdown_table(head, lines)


def correlation_table(spaces):
    head = ["space", "predictor", "target", "n", "Spearman's rho", "95% interval", "paper"]
    lines = []
    for space, numbers in spaces.items():
        for pair in numbers["pairs"]:
            (source, task), (target, target_task) = pair["x"], pair["y"]
            if target_task != "cls" or pair["rho"] is None:
                continue
            names, paper = [name.lower().replace("-", "") for name in (source, target)], None
            if names == ["cifar10", "imagenet"]:
                paper = PAPER_RHO[space].get(task)
            elif names in (["cifar10"] * 2, ["imagenet"] * 2):
                paper = "typically > 0.8"
            interval = pair["rho_interval"] and "[{:.2f}, {:.2f}]".format(*pair["rho_interval"])
            line = [space, f"{source} {task}", f"{target} cls", pair["n"], f"{pair['rho']:.2f}"]
            lines.append([*line, interval, paper])
    return markdown_table(head, lines)


def settings(recipes):
    """A line with what is not off; values that differ are separated by slashes."""
    shown = []
    for name in recipes[0]:
        values = dict.fromkeys(str(recipe[name]) for recipe in recipes if recipe.get(name))
        if values and name not in ("task", "dataset", "recipe", "ops"):
            shown.append(f"{name} {' / '.join(values)}")
    return [f"Settings: {', '.join(shown)}", ""] if shown else []


# --------------------------------------------------------------------------------------------------
# The page


def draw_accuracies(rows, path):
    """A line for each cell: every seed, the mean, and the paper's number."""
    figure = Figure(figsize=(7.5, 1.3 + 0.3 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(rows):
        color = COLORS[row["group"]]
        ax.plot(row["mean"], y, "D", color=color, ms=9, label=row["group"])
        ax.plot(row["scores"], [y] * len(row["scores"]), "o", color=color, ms=5, mec="white")
        if row["paper"]:
            paper = float(row["paper"].split()[0])
            ax.plot(paper, y, "*", color=color, ms=11, mfc="white", label="the paper's number")
    ax.set_yticks(range(len(rows)), [row["cell"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel(f"{rows[0]['metric']} of {objective(rows[0])}: each seed, and their mean")
    ax.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=150)


def main(args):
    searches, results = read(args.folders, "genotype.json"), read(args.folders, "result.json")
    searches = {folder: s for folder, s in searches.items() if "history" in s.get("meta", {})}
    sweeps = read(args.folders, "sweep.json").keys()
    results = {folder: r for folder, r in results.items() if not sweeps & set(folder.parents)}
    if not searches and not results:
        raise InputError(f"no search and no training below {', '.join(args.folders)}")
    for folder, search in searches.items():
        with correlate.parsing(folder / "genotype.json"):
            search_table([search["meta"]]), hardware(search["meta"])  # errors name the file
    tables, metas = make_tables(results, searches), [s["meta"] for s in searches.values()]
    out = Path(args.out or args.folders[0])
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Are labels necessary for this search?", ""]

    for k, (recipe, rows) in enumerate(tables.items(), start=1):
        draw_accuracies(rows, out / f"accuracy_{k}.png")
        lines += [f"## Trained for {objective(rows[0])}", "", *group_table(rows)]
        lines += [f"![Accuracies](accuracy_{k}.png)", "", *cell_table(rows)]
        lines += settings([json.loads(recipe)])
    if searches:
        histories = {title(meta): meta["history"] for meta in metas}
        visualize.draw_history(histories, out / "alphas.png")
        lines += ["## Searches", "", *search_table(metas), "![Alpha histories](alphas.png)", ""]
        for folder, search in searches.items():
            path, cell = f"cell_{folder.name.removeprefix('search_')}.png", title(search["meta"])
            visualize.draw_cell(genotypes.parse_arch(search, folder), out / path, f"{cell}:")
            lines += [f"![Found by {cell}]({path})", ""]
        lines += settings([correlate.recipe(meta.get("identity", {})) for meta in metas])
    for folder, study in read(args.folders, "correlations.json").items():
        with correlate.parsing(folder / "correlations.json"):
            lines += ["## Rank correlations", "", *correlation_table(study["spaces"])]
    runs = sorted({hardware(run) for run in [*results.values(), *metas]})
    failed = len(read(args.folders, "failed.json"))
    lines += ["## Run", "", *(f"- {run}" for run in runs), f"- {failed} trainings failed", ""]
    lines.append("Percent of the best epoch. Paper: 250 epochs on ImageNet, 2700 on Cityscapes.")
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cli.write_json(out / "report.json", [row for rows in tables.values() for row in rows])
    print("\n".join(line for line in lines if not line.startswith("![")))
    print(f"\n{out / 'report.md'}")


if __name__ == "__main__":
    cli.run(main, parse_args)
