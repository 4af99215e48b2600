"""The page of a study: cells searched without labels, with labels, published and random ones.

Reads every genotype.json, result.json and correlations.json below the folders, but no trainings of
sweeps. Writes OUT/report.md, the same page as OUT/report.html, one file to open in a browser, and
OUT/report.json (a row for each trained cell) and figures.

    python report.py runs/cifar10_small --out results/cifar10_small
"""

import argparse
import os
import statistics
from collections import Counter
from pathlib import Path

import cli
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import correlate
import genotypes
import likeness
import visualize
from genotypes import objective

# fmt: off
TARGETS = ["cls on imagenet", "seg on cityscapes"]  # what the cells of PAPER are trained for
PAPER = {  # ± standard deviation where it is known
    "unnas_imagenet_cls": ("76.3 ± 0.06", "73.6 ± 0.31"),
    "unnas_imagenet22k_cls": ("75.9", "72.4"),
    "unnas_imagenet_rot": ("75.8 ± 0.18", "73.6"), "unnas_imagenet22k_rot": ("75.7", "72.9"),
    "unnas_imagenet_col": ("75.7 ± 0.12", "72.2"), "unnas_imagenet22k_col": ("75.9", "73.6"),
    "unnas_imagenet_jig": ("75.9 ± 0.15", "73.1"), "unnas_imagenet22k_jig": ("75.9", "73.1"),
    "unnas_cityscapes_seg": ("75.8", "72.4"), "unnas_cityscapes_rot": ("75.9", None),
    "unnas_cityscapes_col": ("75.2", None), "unnas_cityscapes_jig": ("75.5", "74.1"),
    "darts_v2": ("74.9 ± 0.08", "72.6 ± 0.55"), "pcdarts_in1k": ("75.8", None),
}
# fmt: on


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="A page about searches and trainings.")
    add = parser.add_argument
    add("folders", nargs="+", type=cli.path, metavar="FOLDER", help="what the page is about")
    text = "where to write (default: the first folder)"
    add("--out", type=cli.path, metavar="DIR", help=text)
    return parser.parse_args(argv)


def find(folders, name) -> list:
    paths = (path for folder in folders for path in sorted(Path(folder).rglob(name)))
    return [*{path.resolve(): path for path in paths}.values()]  # each once


def add_titles(searches):
    """Adds "group" and "title" to each search. Other settings, or images, for one objective are a
    group of their own, with a number; what is still called alike has its folder, too."""
    settings, titles = {}, Counter()
    for search in searches.values():
        found = settings.setdefault(objective(search["meta"]), [])
        if recipe(search["meta"]) not in found:
            found.append(recipe(search["meta"]))
    for search in searches.values():
        meta = search["meta"]
        search["group"], found = objective(meta), settings[objective(meta)]
        if len(found) > 1:
            search["group"] += f", settings {1 + found.index(recipe(meta))}"
        search["title"] = f"{search['group']}, seed {meta['seed']}"
        titles[search["title"]] += 1
    folders = [path.absolute().parent for path in searches]
    top = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
    for folder, search in zip(folders, searches.values()):
        if titles[search["title"]] > 1:
            search["title"] += f", {folder.relative_to(top).as_posix()}"


def hardware(run):
    where = f"torch {run['versions']['torch']}, {run['world_size']} x {run['device']}"
    return f"{run['date']}: {where}, commit {run['git_commit']}"


def recipe(run) -> str:
    """The settings that comparable runs share, as text, without what is off."""
    return ", ".join(f"{k} {v}" for k, v in correlate.recipe(run["identity"]).items() if v)


def describe(result, searches):
    """(group, name, key in PAPER, seconds of the search) of a trained cell"""
    arch, name = result["args"]["arch"], result["arch"]
    for path, search in searches.items():
        same_name = genotypes.short_name(str(path)) == name
        if same_name and search["genotype"] == result["genotype"]:
            meta = search["meta"]
            group = "with labels" if meta["task"] in ("cls", "seg") else "without labels"
            paper = "unnas_{1}_{0}".format(*objective(meta).split(" on "))
            return group, search["title"], paper, meta["seconds"]
    cell = genotypes.named_cell(name) if name in genotypes.CELLS else None
    if genotypes.parse_arch(result, arch) == cell:  # also if it comes from a list
        return "published", name, name, None
    group = "random" if "archs.json:" in arch else "other"  # as sample.py writes it
    return group, f"{group} {name}", None, None


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
    """{recipe: rows}, a row for each cell, the best first"""
    cells, tables = {}, {}
    for result in results:
        key = recipe(result), str(result["genotype"]), describe(result, searches)
        cells.setdefault(key, []).append(result)
    for (settings, _, cell), trainings in cells.items():
        seeds = Counter(training["seed"] for training in trainings)
        if max(seeds.values()) > 1:
            places = ", ".join(f"{training['args'].get('out')}" for training in trainings)
            raise cli.InputError(f"two trainings of {cell[1]} with one seed and recipe: {places}")
        tables.setdefault(settings, []).append(make_row(trainings, *cell))
    for rows in tables.values():
        rows.sort(key=lambda row: row["mean"], reverse=rows[0]["higher_is_better"])
    return tables


def mean_std(values):
    std = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{std}"


def group_table(rows) -> list:
    """Intervals by Student's t, and the least significant difference of the two largest groups."""
    groups, lines = {}, []
    for row in rows:
        groups.setdefault(row["group"], []).append(row["mean"])
    for group, means in groups.items():
        n, mean, interval = len(means), statistics.mean(means), None
        if n > 1:
            margin = stats.t.ppf(0.975, n - 1) * stats.sem(means)
            interval = f"[{mean - margin:.2f}, {mean + margin:.2f}]"
        lines.append([group, n, mean_std(means), interval, f"{means[0]:.2f}"])
    text = "Without two groups, one of them of several cells, nothing can be decided."
    freedom = len(rows) - len(groups)
    if freedom and len(groups) > 1:
        std = (sum(len(v) * statistics.pvariance(v) for v in groups.values()) / freedom) ** 0.5
        n, m = sorted(map(len, groups.values()))[-2:]
        least = stats.t.ppf(0.975, freedom) * std * (1 / n + 1 / m) ** 0.5
        text = f"Cells of one group vary by {std:.2f}, so that differences between groups below "
        text += f"{least:.2f} cannot be told apart."
    if len({frozenset(row["seeds"]) for row in rows}) > 1:
        text += " Not all cells have the same seeds, which may be why their means differ."
    head = ["cells", "number", f"{rows[0]['metric']}, mean ± std", "95% interval", "best"]
    return [*cli.markdown_table(head, lines), text, ""]


def cell_table(rows) -> list:
    head = ["cells", "cell", f"{rows[0]['metric']}, best epoch", "seeds", "params, M", "MACs, M"]
    lines = []
    for row in rows:
        search = row["search_seconds"] and cli.format_seconds(row["search_seconds"])
        line = [row["group"], row["cell"], mean_std(row["scores"]), len(row["seeds"])]
        line += [f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.1f}", row["width"], search]
        lines.append([*line, cli.format_seconds(row["seconds"]), row["paper"]])
    return cli.markdown_table([*head, "width", "search", "training", "paper, 250+ epochs"], lines)


def random_search(meta, found) -> str:
    """The best by a search's objective of the random cells that train by it in the search's time,
    which is that of all its devices, from the random searches of correlations.json."""
    texts, limit = [], meta["seconds"] * meta["world_size"]
    for random in found:
        rows = [row for row in random["curve"] if row["seconds"] <= limit]
        same = random["objective"] == objective(meta).split(",")[0]  # whatever the partial channels
        if rows and same:
            best = rows[-1]
            text = f"{random['target']} {best['mean']:.2f} ± {best['std']:.2f}"
            text += f", {best['m']} in {cli.format_seconds(best['seconds'])}"
            texts.append(f"{text} (any one: {rows[0]['mean']:.2f})")
    return "; ".join(texts) or None


def search_table(searches, found) -> list:
    """The end of each search, how decided it was, and what its time is worth in random cells."""
    head, rows = ["search", "epochs", "unchanged for", "lead of ops", "lead of edges"], []
    for search in searches:
        meta, last = search["meta"], search["meta"]["history"][-1]
        epochs = f"{meta['epoch']}/{meta['epochs']}"
        epochs += f": {meta['stopped']}" if meta.get("stopped") else ""
        row = [search["title"], epochs, None, None, None]
        if cells := likeness.decided(meta):
            stood, counted, *leads = zip(*cells)
            row[2] = "{} / {} of {} epochs".format(*stood, counted[0])
            texts = [[f"{np.median(x):.2g} ({min(x):.2g})" for x in lead] for lead in leads]
            row[3:] = map(" / ".join, texts)
        row += ["{} / {}".format(*last["skips"]), "{} / {}".format(*last["convs"])]
        rows.append([*row, cli.format_seconds(meta["seconds"]), random_search(meta, found)])
    text = (
        "Normal / reduction cell. Unchanged: by the last epochs with alpha steps. Lead, median and"
        " least: of a chosen op's weight over the next, of a node's weaker edge over the rest. Of"
        " random cells: the best by the objective of a power of two of them, as many as a sweep has"
        " and its trainings fit into this time."
    )
    head += ["skips", "convolutions", "time", "of random cells"]
    return [*cli.markdown_table(head, rows), text, ""]


def likeness_tables(searches) -> list:
    """How alike cells are that one objective finds with several seeds, or two objectives find."""
    text = (
        "Mean over pairs of searches, in the normal / the reduction cell, with a 95% interval that"
        " leaves out one search at a time. Pairs of one seed do not count, as they start from the"
        " same weights. Random: mean and 95% of single pairs of random cells."
    )
    groups, lines = {}, [text, ""]
    for k, search in enumerate(searches):
        groups.setdefault(search["group"], []).append(k)
    table, chance = likeness.compare(searches), likeness.chance()
    for m, measure in enumerate(likeness.MEASURES):
        rows = []
        for i, a in enumerate(groups.values()):
            row = [[*groups][i], *[None] * i]
            for b in [*groups.values()][i:]:
                mean, limits = likeness.mean_over_pairs(table, a, b)
                cells = [correlate.format_rho(mean[k, m], limits[:, k, m]) for k in (0, 1)]
                row.append(" / ".join(text or "-" for text in cells))
            rows.append(row)
        rows.append(["random", correlate.format_rho(chance[0, m], chance[1:, m])])
        if np.isfinite(table[..., m]).any():
            lines += cli.markdown_table([f"{measure} in common", *groups], rows)
    return lines


def draw_accuracies(rows, path):
    """A line for each cell: its seeds, and their mean."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(7.5, 1.3 + 0.3 * len(rows)), layout="constrained")
    ax = figure.subplots()
    for y, row in enumerate(rows):
        color = visualize.PALETTE[groups.index(row["group"])]
        ax.plot(row["mean"], y, "D", color=color, ms=9, label=row["group"])
        ax.plot(row["scores"], [y] * len(row["scores"]), "o", color=color, ms=5, mec="white")
    ax.set_yticks(range(len(rows)), [cli.plain(row["cell"]) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"{rows[0]['metric']} of {objective(rows[0])}: each seed, and their mean")
    ax.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    cli.save_figure(figure, path)


def main(args):
    searches = {path: genotypes.read_search(path) for path in find(args.folders, "genotype.json")}
    sweeps = {path.parent for path in find(args.folders, "sweep.json")}
    paths = [path for path in find(args.folders, "result.json") if not sweeps & {*path.parents}]
    if not searches and not paths:
        raise cli.InputError(f"no search and no training below {', '.join(args.folders)}")
    found, correlations = [], find(args.folders, "correlations.json")
    for path in correlations:
        found += cli.read_json(path, correlate.FOUND)["random_search"]
    add_titles(searches)
    tables = make_tables([genotypes.read_result(path) for path in paths], searches)
    out = Path(args.out or args.folders[0])
    if (out / "correlations.json").exists():
        raise cli.InputError(f"{out}: its report.md is of correlate.py; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Are labels necessary for this search?", ""]
    for k, (settings, rows) in enumerate(tables.items(), start=1):
        draw_accuracies(rows, out / f"accuracy_{k}.png")
        lines += [f"## Trained for {objective(rows[0])}", "", *group_table(rows), *cell_table(rows)]
        lines += [f"![Accuracies](accuracy_{k}.png)", "", f"Settings: {settings}", ""]
    if searches:
        lines += ["## Searches", "", *search_table(searches.values(), found)]
        lines += ["![Alpha histories](alphas.png)", ""]
        lines += likeness_tables([*searches.values()]) if len(searches) > 1 else []
        histories = {s["title"]: s["meta"]["history"] for s in searches.values()}
        visualize.draw_history(histories, out / "alphas.png")
        pictures, settings = {}, set()
        for k, (path, search) in enumerate(searches.items(), start=1):
            name, image = search["title"], f"cell_{k}.png"
            visualize.draw_cell(genotypes.parse_arch(search, path), out / image, f"{name}:")
            pictures.setdefault(search["group"], []).append(f"![{name}]({image})")
            how = hardware(search["meta"]), search["group"], recipe(search["meta"])
            settings.add("- {}. Settings of {}: {}".format(*how))
        head = ["found by", *range(1, 1 + max(map(len, pictures.values())))]
        lines += cli.markdown_table(head, [[name, *row] for name, row in pictures.items()])
        lines += [*sorted(settings), ""]
    for path in correlations:
        text = (path.parent / "report.md").read_text("utf-8", "replace").replace("\n#", "\n##")
        folder = Path(os.path.relpath(path.parent, out)).as_posix()
        lines += ("#" + text.replace("](", f"]({folder}/")).split("\n")
    rows = [row for rows in tables.values() for row in rows]
    lines += sorted({f"- {how}" for row in rows for how in row["how"]})
    lines += ["", f"{len(find(args.folders, 'failed.json'))} trainings failed."]
    cli.write_text(out / "report.md", "\n".join(lines) + "\n")
    cli.write_page(out / "report.html", lines)
    cli.write_json(out / "report.json", rows)
    print("\n".join(line for line in lines if "![" not in line))
    print(f"\n{out / 'report.md'} and report.html")


if __name__ == "__main__":
    cli.run(main, parse_args)
