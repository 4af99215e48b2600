"""How well does one task's ranking of architectures predict another's? (Sec. 4, Fig. 2-5)

Reads folders of finished trainings (result.json) and of the paper's public release
(<space>/<dataset>/<task>/<run>/sweep_summary.json); NAME=FOLDER calls the data set NAME. Writes
OUT/report.md, OUT/correlations.json and the figures as PNG and PDF. Needs no torch.

    python correlate.py runs/sample_darts_shapes
    python correlate.py CIFAR-10=runs/sample_darts_cifar10 ImageNet=runs/sample_darts_imagenet
    python correlate.py unnas/summaries --out runs/correlation_release
"""

import argparse
import json
import math
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import cli
from cli import InputError, at_least, markdown_table, read_json
from genotypes import nasbench_hash, parse_nasbench

SPACES = {"darts": "DARTS", "nasbench101": "NAS-Bench-101"}
STYLES = {  # of a task: name, colour, marker
    "cls": ("classification", "#555555", "D"),
    "rot": ("rotation", "#1b9e77", "o"),
    "col": ("colorization", "#d95f02", "s"),
    "jig": ("jigsaw", "#7570b3", "^"),
}


def parse_args(argv=None):
    description = "Rank correlations between tasks and data sets, with figures."
    parser = argparse.ArgumentParser(description=description, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("folders", nargs="+", metavar="[NAME=]FOLDER", help="results of the data set NAME")
    add("--out", metavar="DIR", default="runs/correlation", help="where to write")
    add("--score", choices=["best", "final"], default="best", help="the epoch that counts")
    add("--bootstrap", type=at_least(100, int), default=2000, help="samples for the intervals")
    add("--seed", type=at_least(0, int), default=0, help="of the bootstrap and of Fig. 5")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Reading. A training is its result.json, or what the public release tells of it; `key` tells its
# architecture from others, `epochs` are its scores by epoch; higher scores are better.


@contextmanager
def parsing(path):
    """Malformed content becomes an InputError with the file and the field, or what is wrong."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a result as the scripts write them ({what})") from None


def recipe(identity) -> dict:
    """The settings that comparable trainings share: the identity of one without what varies with
    seed and architecture, as the width does where --max_macs chose it."""
    varying = {"seed", "genotype", "split"} | ({"width"} if identity.get("max_macs") else set())
    return {name: value for name, value in identity.items() if name not in varying}


def read_result(path, score):
    result = read_json(path)
    key = json.dumps(result["genotype"])
    if result["space"] == "nasbench101":  # isomorphic cells are one architecture
        key = nasbench_hash(parse_nasbench(result["genotype"], path))
    sign = 1.0 if result["higher_is_better"] else -1.0
    epochs = [sign * epoch[result["metric"]] for epoch in result["epochs"]]
    training = {"key": key, "score": sign * result[score], "params": 1.0 * result["params"]}
    yield result | training | {"epochs": epochs, "recipe": recipe(result["identity"])}


def read_release(path, score):
    space, dataset, task, seed = path.absolute().parent.parts[-4:]
    space = space.replace("nas_bench", "nasbench101")
    if space not in SPACES or score != "best":
        raise InputError(f"{path}: expected darts|nas_bench/<data set>/<task>/<run>/, --score best")
    shared = {"space": space, "dataset": dataset, "task": task, "seed": seed, "recipe": {}}
    for job in read_json(path)["job_summaries"]:
        key, error = str(job["job_id"]), job["min_test_top1"]
        training = shared | {"arch": key, "epochs": [], "params": math.nan}
        if space == "darts":
            key = json.dumps(job["net"]["genotype"], sort_keys=True)
        error = error[-1] if isinstance(error, list) else error  # the lowest so far
        yield training | {"key": key, "score": math.nan if error is None else 100 - error}


READERS = {"result.json": read_result, "sweep_summary.json": read_release}


def read(folders, score) -> dict:
    """{space: {(data set, task): {key of an architecture: {seed: training}}}}"""
    spaces, recipes = {}, {}
    for text in folders:
        dataset, _, folder = text.rpartition("=")
        paths = sorted(path for path in Path(folder).rglob("*.json") if path.name in READERS)
        if not paths:
            raise InputError(f"{folder}: no such folder, or no {' or '.join(READERS)} in it")
        for path in paths:
            with parsing(path):
                trainings = list(READERS[path.name](path, score))
            for training in trainings:
                label = (dataset or training["dataset"], training["task"])
                column = spaces.setdefault(training["space"], {}).setdefault(label, {})
                recipe = recipes.setdefault((training["space"], label), training["recipe"])
                add(training, column.setdefault(training["key"], {}), recipe, path)
    return spaces


def add(training, seeds, recipe, path):
    """Adds a training to those of its architecture, if it is comparable."""
    hint = "for the same data set and task; give the folders different names, NAME=FOLDER"
    for name in recipe | training["recipe"]:
        value, other = training["recipe"].get(name), recipe.get(name)
        if value != other:
            raise InputError(f"{path}: {name} = {value}, but {other} elsewhere, {hint}")
    if training["seed"] in seeds:
        again = f"a second result of {training['arch']}, seed {training['seed']}"
        raise InputError(f"{path}: {again}, {hint}")
    seeds[training["seed"]] = training


# --------------------------------------------------------------------------------------------------
# The common table of a space, {(data set, task): [{seed: training}, ...]}, every column of the
# same n architectures in the same order

title = " ".join  # of a (data set, task)


def over_seeds(column, field):
    """The means of a field over the seeds, (n,) or (n, epochs)"""
    return np.array([np.mean([run[field] for run in runs.values()], axis=0) for runs in column])


def common_table(space, columns):
    """The table of the architectures with finite scores in all columns; notes on the others."""
    datasets = list(dict.fromkeys(dataset for dataset, _ in columns))
    labels = sorted(columns, key=lambda a: (datasets.index(a[0]), [*STYLES, a[1]].index(a[1])))
    means = {}
    for a in labels:
        means[a] = dict(zip(columns[a], over_seeds(columns[a].values(), "score")))
    finite = [{key for key in columns[a] if np.isfinite(means[a][key])} for a in labels]
    common = sorted(set.intersection(*finite))
    if len(common) < 3:
        why = f"{len(common)} architectures have results in all of {', '.join(map(title, labels))}"
        raise InputError(f"{SPACES[space]}: {why}; at least 3 are needed")
    table, notes = {}, []
    for label in labels:
        others = [columns[label][key] for key in columns[label].keys() - common]
        if others:
            names = ", ".join(sorted(next(iter(runs.values()))["arch"] for runs in others))
            why = f"{len(others)} left out, without a finite score in every column: {names}"
            notes.append(f"{title(label)}: {why}")
        scores = {means[label][key] for key in common}
        if len(scores) > 1:
            table[label] = [columns[label][key] for key in common]
        else:
            why = f"all {len(common)} architectures have {scores.pop():.4g}, no ranking; left out"
            notes.append(f"{title(label)}: {why}")
    if len(table) < 2:
        why = f"{SPACES[space]}: fewer than two rankings to compare"
        raise InputError(". ".join([why, *notes]))
    return table, notes


# --------------------------------------------------------------------------------------------------
# Statistics of rankings: scores (n,), the higher the better


@np.errstate(invalid="ignore", divide="ignore")
def rank_correlation(x, y):
    """Spearman's rho along the last axis; NaN where x or y is constant."""
    x, y = (stats.rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


@np.errstate(invalid="ignore", divide="ignore")
def partial_rank_correlation(x, y, z):
    """Of x and y with the ranks of z taken out; NaN where z is constant."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def compare(x, y, params, bootstrap, seed) -> dict:
    """How well x predicts y, with 95% percentile intervals over bootstrap samples of architectures.
    `params`, their numbers of parameters, may be NaN."""
    n = len(x)
    sample = np.random.default_rng(seed).integers(n, size=(bootstrap, n))

    def interval(rhos):  # without constant samples, for which scipy.stats.bootstrap would be NaN
        rhos = rhos[np.isfinite(rhos)]
        return np.quantile(rhos, [0.025, 0.975]).tolist() if len(rhos) else None

    best_x, best_y = (np.argsort(-v, kind="stable") for v in (x, y))
    k, half = max(1, round(n / 10)), best_y[: (n + 1) // 2]
    partial_rhos = partial_rank_correlation(x[sample], y[sample], params[sample])
    return {
        "n": n,
        "rho": rank_correlation(x, y),
        "rho_interval": interval(rank_correlation(x[sample], y[sample])),
        "p": stats.spearmanr(x, y).pvalue,
        "tau": stats.kendalltau(x, y).statistic,
        "top10_overlap": len(np.intersect1d(best_x[:k], best_y[:k])) / k,
        "rho_best_half": rank_correlation(x[half], y[half]),
        "partial_rho": partial_rank_correlation(x, y, params),
        "partial_rho_interval": interval(partial_rhos),
    }


def seed_stability(column):
    """The mean rho between two seeds that all architectures have: a noise ceiling."""
    seeds = sorted(set.intersection(*map(set, column)), key=str)
    scores = [[runs[seed]["score"] for runs in column] for seed in seeds]
    rhos = [rank_correlation(a, b) for a, b in combinations(scores, 2)]
    return {"seeds": len(seeds), "rho": np.mean(rhos) if rhos else None}


def random_experiments(proxy, target, seed) -> list:
    """Fig. 5: for m = 1, 2, 4, ... < n, ceil(n / m) times, draw m architectures, take the best by
    the proxy and note its target. [(m, mean, standard deviation), ...]"""
    rng, n, curve = np.random.default_rng(seed), len(proxy), []
    for m in (2**k for k in range((n - 1).bit_length())):
        draws = [rng.choice(n, m, replace=False) for _ in range(math.ceil(n / m))]
        found = [target[draw[np.argmax(proxy[draw])]] for draw in draws]
        curve.append((m, np.mean(found), np.std(found)))
    return curve


def analyse(space, columns, args) -> dict:
    """Every number about a space."""
    table, notes = common_table(space, columns)
    scores = {a: over_seeds(column, "score") for a, column in table.items()}
    by_epoch = {a: over_seeds(column, "epochs").T for a, column in table.items()}
    known = [a for a in table if len(by_epoch[a])]  # the release tells only the best
    targets = [a for a in table if a[1] == "cls"]
    pairs = [(a, b) for b in targets for a in table if a != b]
    pairs += combinations([a for a in table if a not in targets], 2)
    numbers, experiments, epochs = [], {}, {}
    for a, b in pairs:
        params = over_seeds(table[b], "params")
        compared = compare(scores[a], scores[b], params, args.bootstrap, args.seed)
        numbers.append({"x": list(a), "y": list(b), **compared})
    for b in targets:
        experiments[b] = {a: random_experiments(scores[a], scores[b], args.seed) for a in table}
        epochs[b] = {a: rank_correlation(by_epoch[a], scores[b]) for a in known}
    return {
        "n": len(scores[a]),
        "archs": [next(iter(runs.values()))["arch"] for runs in next(iter(table.values()))],
        "scores": scores,
        "pairs": numbers,
        "notes": notes,
        "stability": {a: seed_stability(column) for a, column in table.items()},
        "matrix": {a: {b: rank_correlation(scores[a], scores[b]) for b in table} for a in table},
        "experiments": experiments,
        "epochs": epochs if known else {},
    }


# --------------------------------------------------------------------------------------------------
# Figures


def draw_scatter(spaces, dataset, tasks, target):
    """Fig. 2-4: a row for each space, a column for each task; x: the target, y: the task."""
    figure = Figure(figsize=(3.2 * len(tasks), 2.8 * len(spaces)), layout="constrained")
    axes = figure.subplots(len(spaces), len(tasks), squeeze=False)
    for ax, (space, task) in zip(axes.flat, product(spaces, tasks)):
        pairs = {(*pair["x"], *pair["y"]): pair for pair in spaces[space]["pairs"]}
        pair = pairs.get((dataset, task, *target))
        if pair is None:
            ax.set_axis_off()
            continue
        x, y = (spaces[space]["scores"][label] for label in (target, (dataset, task)))
        name, color, marker = STYLES.get(task, (task, "#000000", "P"))
        ax.scatter(x, y, s=14, alpha=0.6, color=color, marker=marker, linewidths=0)
        slope, intercept, _, _ = stats.theilslopes(y, x)
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, intercept + slope * ends, color=color)
        rho = format_rho(pair["rho"], pair["rho_interval"])
        ax.set_title(f"{name}: ρ = {rho}", fontsize=10)
        ax.set(xlabel=f"{title(target)} ({SPACES[space]})", ylabel=f"{dataset} {task}")
        ax.grid(alpha=0.3)
    return figure


def draw_matrix(space, numbers):
    labels = [title(label) for label in numbers["matrix"]]
    rhos = np.array([list(row.values()) for row in numbers["matrix"].values()])
    size = (1.5 + 0.75 * len(labels), 1.0 + 0.65 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    figure.colorbar(ax.imshow(rhos, cmap="RdBu_r", vmin=-1, vmax=1))
    ax.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    ax.set_yticks(range(len(labels)), labels)
    for (i, j), rho in np.ndenumerate(rhos):
        color = "white" if abs(rho) > 0.6 else "black"
        ax.text(j, i, f"{rho:.2f}", ha="center", va="center", color=color)
    ax.set_title(f"Spearman's ρ, {SPACES[space]}, n = {numbers['n']}", fontsize=10)
    return figure


def draw_curves(panels, space, experiments):
    """Fig. 5, or rho by epoch: a panel for each target, {target: {label: curve}}"""
    figure = Figure(figsize=(4.6 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (target, curves) in zip(axes, panels.items()):
        datasets = list(dict.fromkeys(dataset for dataset, _ in curves))
        for (dataset, task), curve in curves.items():
            _, color, marker = STYLES.get(task, (task, "#000000", "P"))
            x, y = range(1, len(curve) + 1), curve
            if experiments:
                x, y, std = np.transpose(curve)
                ax.fill_between(x, y - 2 * std, y + 2 * std, color=color, alpha=0.07, linewidth=0)
            line = ["-", "--", ":", "-."][datasets.index(dataset) % 4] + marker
            ax.plot(x, y, line, color=color, ms=5, label=f"{dataset} {task}")
        if experiments:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set(xlabel="architectures drawn", ylabel=f"{title(target)} of the best")
        else:
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set(xlabel="training epoch", ylabel=f"rho with {title(target)}")
        ax.set_title(SPACES[space])
        ax.grid(alpha=0.3)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, handlelength=3)
    return figure


def draw_figures(spaces) -> dict:
    """{name: figure}"""
    figures = {}
    labels = list(dict.fromkeys(label for space in spaces.values() for label in space["scores"]))
    datasets = list(dict.fromkeys(dataset for dataset, _ in labels))
    for a, b in product(datasets, repeat=2):
        tasks = [task for dataset, task in labels if dataset == a and (a != b or task != "cls")]
        if (b, "cls") in labels and tasks:
            name = f"within_{a}" if a == b else f"across_{a}_{b}"
            figures[name.replace("/", "_")] = draw_scatter(spaces, a, tasks, (b, "cls"))
    for space, numbers in spaces.items():
        figures[f"matrix_{space}"] = draw_matrix(space, numbers)
        for name in ("experiments", "epochs"):
            if numbers[name]:
                figure = draw_curves(numbers[name], space, name == "experiments")
                figures[f"{name}_{space}"] = figure
    return figures


# --------------------------------------------------------------------------------------------------
# Text


def format_rho(rho, interval=None):
    if not np.isfinite(rho):
        return None
    return f"{rho:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")


def report_lines(space, numbers) -> list:
    notes = [f"- {note}" for note in numbers["notes"]]
    for label, stability in numbers["stability"].items():
        if stability["seeds"] > 1:
            rho = format_rho(stability["rho"])
            notes.append(f"- {title(label)}: rho {rho} between two of {stability['seeds']} seeds")
    head = ["predictor", "target", "rho [95%]", "p", "tau", "top-10% overlap", "rho, best half"]
    rows = []
    for pair in numbers["pairs"]:
        row = [title(pair["x"]), title(pair["y"]), format_rho(pair["rho"], pair["rho_interval"])]
        row += [f"{pair['p']:.2g}", f"{pair['tau']:.2f}", f"{pair['top10_overlap']:.2f}"]
        partial = format_rho(pair["partial_rho"], pair["partial_rho_interval"])
        rows.append([*row, format_rho(pair["rho_best_half"]), partial])
    table = markdown_table([*head, "partial rho [95%]"], rows)
    return [f"## {SPACES[space]}, n = {numbers['n']}", "", *table, *notes, ""]


def to_json(value):
    """Labels become text, arrays lists and NaN None."""
    if isinstance(value, dict):
        return {title(k) if isinstance(k, tuple) else k: to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(args):
    columns = read(args.folders, args.score)
    spaces = {space: analyse(space, columns[space], args) for space in columns}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    content = {"score": args.score, "bootstrap": args.bootstrap, "spaces": spaces}
    cli.write_json(out / "correlations.json", to_json(content))
    lines = ["# Rank correlations between tasks", ""]
    for space, numbers in spaces.items():
        lines += report_lines(space, numbers)
    lines += [
        f"Scores: {args.score} epoch, mean over seeds. Intervals: {args.bootstrap} samples of the "
        "architectures. Best half: by the target. Partial rho: given the number of parameters.\n"
    ]
    print("\n".join(lines))
    for name, figure in draw_figures(spaces).items():
        lines.append(f"![{name}]({name}.png)\n")
        for ending in ("png", "pdf"):
            figure.savefig(out / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"{out / 'report.md'}, correlations.json and the figures as PNG and PDF")


if __name__ == "__main__":
    cli.run(main, parse_args)
