"""How well does one task's ranking of architectures predict another's? Rank correlations, tables, figures (Fig. 2-5).

Reads folders of finished trainings (result.json) and of the paper's public release (<space>/<dataset>/<task>/<run>/
sweep_summary.json), NAME=FOLDER to call a data set NAME. Writes OUT/report.md, OUT/correlations.json and the figures as PNG
and PDF. Needs no torch.

    python correlate.py runs/sample_darts_shapes
    python correlate.py CIFAR-10=runs/sample_darts_cifar10 ImageNet=runs/sample_darts_imagenet --out runs/correlation
    python correlate.py unnas/summaries
"""

import argparse
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

import errors
from errors import InputError, at_least
from genotypes import nasbench_hash, parse_nasbench, read_json

SPACES = {"darts": "DARTS", "nasbench101": "NAS-Bench-101"}
SPACE_FOLDERS = {"darts": "darts", "nas_bench": "nasbench101"}  # of the public release
TASKS = {"cls": "classification", "rot": "rotation", "col": "colorization", "jig": "jigsaw"}
COLORS = {"rot": "#1b9e77", "col": "#d95f02", "jig": "#7570b3", "cls": "#555555"}
FEWEST = 3


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Rank correlations between tasks and data sets, with figures.")
    parser.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help="results below it, of the data set NAME")
    parser.add_argument("--out", metavar="DIR", default="runs/correlation", help="where to write (default: %(default)s)")
    parser.add_argument("--score", choices=["best", "final"], default="best", help="the epoch that counts (default: best)")
    parser.add_argument("--bootstrap", type=at_least(100, int), default=2000, metavar="N", help="samples for the intervals")
    parser.add_argument("--seed", type=at_least(0, int), default=0, help="of bootstrap and random experiments")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------------
# Reading. A column is one (data set, task) of a space: {architecture: {seed: run}}; a run has a score, its epochs' scores
# and its number of parameters, the latter two where known.


class Column:
    def __init__(self):
        self.runs, self.settings, self.higher_is_better, self.names = {}, None, True, {}

    def add(self, key, name, seed, run, where):
        if seed in self.runs.setdefault(key, {}):
            raise InputError(f"{where}: a second result of {name}, seed {seed}, for the same data set and task; give the "
                             "folders different names, NAME=FOLDER")  # fmt: skip
        self.runs[key][seed] = run
        self.names[key] = name


def read(folders, score) -> dict:
    """{space: {(data set, task): Column}}"""
    columns = {}
    for text in folders:
        name, equals, folder = text.rpartition("=")
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder")
        paths = sorted(Path(folder).rglob("*.json"))
        results = [path for path in paths if path.name == "result.json"]
        summaries = [path for path in paths if path.name == "sweep_summary.json"]
        if not results + summaries:
            raise InputError(f"{folder}: neither result.json nor sweep_summary.json below it")
        for path in results:
            read_result(path, name if equals else None, score, columns)
        for path in summaries:
            read_summary(path, name if equals else None, score, columns)
    datasets = list(dict.fromkeys(label[0] for space in columns.values() for label in space))
    order = {task: k for k, task in enumerate(TASKS)}  # the paper's

    def place(label):
        return datasets.index(label[0]), order.get(label[1], len(order)), label[1]

    return {space: {label: columns[space][label] for label in sorted(columns[space], key=place)} for space in columns}


def read_result(path, name, score, columns):
    result = read_json(path)
    try:
        genotype, task, space = result["genotype"], result["task"], result.get("space", "darts")
        key = json.dumps(genotype) if space == "darts" else nasbench_hash(parse_nasbench(genotype, path))
        column = columns.setdefault(space, {}).setdefault((name or result["dataset"], task), Column())
        settings = {k: v for k, v in result["identity"].items() if k not in ("seed", "genotype", "split")}
        column.higher_is_better = result["higher_is_better"]
        history = [epoch[result["metric"]] for epoch in result["epochs"]]
        run = {"score": result[score], "epochs": history, "params": result["params"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a result of train.py ({type(error).__name__} {error})") from None
    column.settings = column.settings or settings
    for option, value in settings.items():
        if column.settings.get(option) != value:
            raise InputError(f"{path}: trained with {option} = {value}, others of the same data set and task with "
                             f"{column.settings.get(option)}; give the folders different names, NAME=FOLDER")  # fmt: skip
    column.add(key, result["arch"], result["seed"], run, path)


def read_summary(path, name, score, columns):
    """The paper's public release. It holds the lowest test error so far, so a list's last element is the best epoch."""
    if score != "best":
        raise InputError(f"{path}: the public release holds only the best epoch; use --score best")
    space, dataset, task, run = path.parent.parts[-4:]
    if space not in SPACE_FOLDERS:
        raise InputError(f"{path}: expected <space>/<dataset>/<task>/<run>/, a space being {' or '.join(SPACE_FOLDERS)}")
    column = columns.setdefault(SPACE_FOLDERS[space], {}).setdefault((name or dataset, task), Column())
    try:
        for job in read_json(path)["job_summaries"]:
            error, name = job["min_test_top1"], str(job["job_id"])
            error = error[-1] if isinstance(error, list) else error
            key = json.dumps(job["net"]["genotype"], sort_keys=True) if space == "darts" else name
            score = float("nan") if error is None else 100 - error
            column.add(key, name, run, {"score": score, "epochs": None, "params": None}, path)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: not a sweep summary of the release ({type(error).__name__} {error})") from None


def common_table(space, columns):
    """For the architectures that all columns have with finite scores: their names, {column: scores (n,), the higher the
    better}, {column: [{seed: run}]}, and lines that say what was left out."""
    notes, usable = [], {}
    for label, column in columns.items():
        bad = [key for key, runs in column.runs.items() if not all(np.isfinite(run["score"]) for run in runs.values())]
        if bad:
            names = ", ".join(sorted(column.names[key] for key in bad))
            notes.append(f"{title(label)}: {len(bad)} with a score that is no number, left out: {names}")
        usable[label] = set(column.runs) - set(bad)
    keys = sorted(set.intersection(*usable.values()))
    for label, column in columns.items():
        others = [column.names[key] for key in usable[label] - set(keys)]
        if others:
            notes.append(f"{title(label)}: {len(others)} not common to all, left out: {', '.join(sorted(others))}")
    if len(keys) < FEWEST:
        raise InputError(f"{SPACES[space]}: {len(keys)} architectures have results in all of "
                         f"{', '.join(map(title, columns))}; at least {FEWEST} are needed")  # fmt: skip
    scores, kept = {}, {}
    for label, column in columns.items():
        runs = [list(column.runs[key].values()) for key in keys]
        values = np.array([np.mean([run["score"] for run in seeds]) for seeds in runs])
        if np.ptp(values) == 0:
            notes.append(f"{title(label)}: all {len(keys)} architectures have {values[0]:.4g}, no ranking; left out")
            continue
        scores[label], kept[label] = values if column.higher_is_better else -values, [column.runs[key] for key in keys]
    if len(scores) < 2:
        raise InputError(f"{SPACES[space]}: fewer than two rankings to compare. " + ". ".join(notes))
    names = next(iter(columns.values())).names
    return [names[key] for key in keys], scores, kept, notes


def title(label):
    return f"{label[0]} {label[1]}"


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of two rankings, (n,) each, the higher the better


def rank_correlation(x, y):
    """Spearman's rho along the last axis; NaN where one of them is constant."""
    x, y = (stats.rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def partial_rank_correlation(x, y, z):
    """Of x and y with the ranks of z taken out (for ranks, params and log params are the same)."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def compare(x, y, params, bootstrap, seed) -> dict:
    """How well x predicts y. Intervals: 95% of bootstrap samples of architectures, by percentile. `params` may be None."""
    n = len(x)
    sample = np.random.default_rng(seed).integers(n, size=(bootstrap, n))

    def interval(values):
        values = values[np.isfinite(values)]
        return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else None

    k = max(1, round(n / 10))
    top = [set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (x, y)]
    half = np.argsort(-y, kind="stable")[: (n + 1) // 2]
    result = {
        "n": n,
        "rho": rank_correlation(x, y),
        "rho_interval": interval(rank_correlation(x[sample], y[sample])),
        "p": stats.spearmanr(x, y).pvalue,
        "tau": stats.kendalltau(x, y).statistic,
        "top10_overlap": len(top[0] & top[1]) / k,
        "rho_best_half": rank_correlation(x[half], y[half]),  # of the half that is best by y
        "partial_rho": None,
        "partial_rho_interval": None,
    }
    if params is not None and np.ptp(params):
        result["partial_rho"] = partial_rank_correlation(x, y, params)
        result["partial_rho_interval"] = interval(partial_rank_correlation(x[sample], y[sample], params[sample]))
    return {name: number(value) for name, value in result.items()}


def number(value):
    """A plain float for JSON, None for NaN."""
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def seed_stability(runs):
    """The mean rho between two seeds of a column over the architectures that have all seeds, or None: a noise ceiling."""
    seeds = sorted(set.intersection(*(set(r) for r in runs)), key=str)
    scores = np.array([[r[s]["score"] for r in runs] for s in seeds])
    rhos = [rank_correlation(a, b) for a, b in itertools.combinations(scores, 2)]
    return {"seeds": len(seeds), "rho": number(np.mean(rhos)) if rhos else None}


def random_experiments(proxy, target, seed) -> list:
    """Fig. 5: for m = 1, 2, 4, ... < n, ceil(n / m) times, draw m architectures, take the best by the proxy and note its
    target. [(m, mean, standard deviation), ...]"""
    rng, n, curve, m = np.random.default_rng(seed), len(proxy), [], 1
    while m < n:
        drawn = [rng.choice(n, m, replace=False) for _ in range(-(-n // m))]
        found = [target[some[np.argmax(proxy[some])]] for some in drawn]
        curve.append((m, float(np.mean(found)), float(np.std(found))))
        m *= 2
    return curve


def by_epoch(runs, sign, target) -> list | None:
    """rho between the scores after each epoch, mean over seeds, and the target; None if epochs are not known."""
    histories = [[run["epochs"] for run in seeds.values()] for seeds in runs]
    lengths = {len(history) if history else 0 for seeds in histories for history in seeds}
    if len(lengths) > 1 or lengths == {0}:
        return None
    scores = sign * np.array([np.mean(seeds, axis=0) for seeds in histories])  # (n, epochs)
    return [number(rank_correlation(column, target)) for column in scores.T]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def save(figure, out, name):
    for ending in ("png", "pdf"):
        figure.savefig(out / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    return name


def scatter(tables, dataset, tasks, target, out, name):
    """Fig. 2-4: a row for each space, a column for each task; x: accuracy of the target, y: accuracy of the task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(tasks), 2.8 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), len(tasks), squeeze=False)
    for row, (space, table) in zip(axes, tables.items()):
        for ax, task in zip(row, tasks):
            if not {(dataset, task), target} <= table["scores"].keys():
                ax.set_axis_off()
                continue
            x, y = table["scores"][target], table["scores"][dataset, task]
            ax.set(xlabel=f"{title(target)} ({SPACES[space]})", ylabel=f"{dataset} {task}")
            slope, intercept, _, _ = stats.theilslopes(y, x)
            ends = np.array([x.min(), x.max()])
            pair = find_pair(table, (dataset, task), target)
            ax.scatter(x, y, s=14, alpha=0.6, color=COLORS.get(task, "#555555"), linewidths=0)
            ax.plot(ends, intercept + slope * ends, color=COLORS.get(task, "#555555"))
            low, high = pair["rho_interval"]
            ax.set_title(f"{TASKS.get(task, task)}: $\\rho$ = {pair['rho']:.2f} [{low:.2f}, {high:.2f}]", fontsize=10)
            ax.grid(alpha=0.3)
    return save(figure, out, name)


def matrix(space, table, out):
    from matplotlib.figure import Figure

    labels = list(table["scores"])
    rho = np.array([[table["matrix"][a][b] for b in labels] for a in labels])
    figure = Figure(figsize=(1.5 + 0.75 * len(labels), 1.0 + 0.65 * len(labels)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(rho, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(labels)), map(title, labels), rotation=45, ha="right")
    ax.set_yticks(range(len(labels)), map(title, labels))
    for i, j in itertools.product(range(len(labels)), repeat=2):
        ax.text(j, i, f"{rho[i, j]:.2f}", ha="center", va="center", color="white" if abs(rho[i, j]) > 0.6 else "black")
    ax.set_title(f"Spearman's $\\rho$, {SPACES[space]}, n = {table['n']}", fontsize=10)
    figure.colorbar(image)
    return save(figure, out, f"matrix_{space}")


def curves(space, table, key, out, draw, xlabel, ylabel):
    """A panel for each classification target, with a curve for each of the other columns."""
    from matplotlib.figure import Figure

    panels = table[key]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for ax, (target, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        styles = dict(zip(dict.fromkeys(dataset for dataset, _ in lines), ["-", "--", ":", "-."]))
        for (dataset, task), line in lines.items():
            style = dict(color=COLORS.get(task, "#000000"), ls=styles.get(dataset, "-"), label=f"{dataset} {task}")
            draw(ax, line, style)
        ax.set(xlabel=xlabel, ylabel=ylabel.format(title(target)), title=SPACES[space])
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return save(figure, out, f"{key}_{space}")


def draw_experiments(ax, curve, style):
    m, mean, std = np.array(curve).T
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.plot(m, mean, marker="o", ms=4, **style)
    ax.fill_between(m, mean - 2 * std, mean + 2 * std, color=style["color"], alpha=0.07, linewidth=0)


def draw_epochs(ax, rhos, style):
    ax.plot(range(1, len(rhos) + 1), [np.nan if r is None else r for r in rhos], marker="o", ms=4, **style)


# ---------------------------------------------------------------------------------------------------------------------


def find_pair(table, a, b):
    return next(pair for pair in table["pairs"] if pair["x"] == list(a) and pair["y"] == list(b))


def analyse(space, columns, args) -> dict:
    """Every number about a space."""
    names, scores, runs, notes = common_table(space, columns)
    raw = {label: values if columns[label].higher_is_better else -values for label, values in scores.items()}
    all_params = {label: [next(iter(r.values()))["params"] for r in kept] for label, kept in runs.items()}
    targets = [label for label in scores if label[1] == "cls"]
    wanted = [(a, b) for b in targets for a in scores if a != b]
    wanted += itertools.combinations([label for label in scores if label not in targets], 2)
    pairs = []
    for a, b in wanted:
        params = None if None in all_params[b] else np.array(all_params[b])
        pairs.append({"x": list(a), "y": list(b), **compare(scores[a], scores[b], params, args.bootstrap, args.seed)})
    experiments, epochs = {}, {}
    for target in targets:
        experiments[target] = {label: random_experiments(scores[label], raw[target], args.seed) for label in scores}
        found = {a: by_epoch(runs[a], 1 if columns[a].higher_is_better else -1, scores[target]) for a in scores}
        if any(found.values()):
            epochs[target] = {label: rhos for label, rhos in found.items() if rhos}
    stability = {label: seed_stability(kept) for label, kept in runs.items()}
    matrix = {a: {b: number(rank_correlation(scores[a], scores[b])) for b in scores} for a in scores}
    return {"n": len(names), "archs": names, "scores": raw, "pairs": pairs, "notes": notes, "stability": stability,
            "matrix": matrix, "experiments": experiments, "epochs": epochs}  # fmt: skip


def draw_figures(tables, out):
    names = []
    labels = list(dict.fromkeys(label for table in tables.values() for label in table["scores"]))
    datasets = list(dict.fromkeys(dataset for dataset, _ in labels))
    for a, b in itertools.product(datasets, repeat=2):
        tasks = [task for dataset, task in labels if dataset == a and (a != b or task != "cls")]
        if (b, "cls") in labels and tasks:
            name = f"within_{a}" if a == b else f"across_{a}_{b}"
            names.append(scatter(tables, a, tasks, (b, "cls"), out, name.replace("/", "_")))
    for space, table in tables.items():
        names.append(matrix(space, table, out))
        names.append(curves(space, table, "experiments", out, draw_experiments, "architectures drawn", "{} of the best"))
        names.append(curves(space, table, "epochs", out, draw_epochs, "training epoch", "rho with {}"))
    return [name for name in names if name]


def with_interval(value, interval):
    return "-" if value is None else f"{value:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")


def write_report(tables, figures, args, out):
    lines = ["# Rank correlations between tasks", ""]
    for space, table in tables.items():
        lines += [f"## {SPACES[space]}, n = {table['n']}", ""]
        lines += [f"- {note}" for note in table["notes"]] + [""] * bool(table["notes"])
        lines += ["| predictor | target | rho [95%] | p | tau | top-10% overlap | rho, best half | partial rho [95%] |",
                  "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for p in table["pairs"]:
            best_half = with_interval(p["rho_best_half"], None)
            lines.append(f"| {title(p['x'])} | {title(p['y'])} | {with_interval(p['rho'], p['rho_interval'])} "
                         f"| {p['p']:.2g} | {p['tau']:.2f} | {p['top10_overlap']:.2f} | {best_half} "
                         f"| {with_interval(p['partial_rho'], p['partial_rho_interval'])} |")  # fmt: skip
        stable = [
            f"{title(a)} {with_interval(s['rho'], None)} ({s['seeds']} seeds)"
            for a, s in table["stability"].items()
            if s["seeds"] > 1
        ]
        if stable:
            lines += ["", f"rho between two seeds of one column, the noise ceiling of a single seed: {', '.join(stable)}."]
        lines.append("")
    lines += [f"Score of a training: its {args.score} epoch, mean over seeds. Intervals: {args.bootstrap} bootstrap samples "
              "of architectures. Best half: by the target. Partial rho: given the number of parameters.", ""]  # fmt: skip
    lines += [f"![{name}]({name}.png)\n" for name in figures]
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return lines


def to_json(value):
    """Plain types: label tuples become text, arrays lists."""
    if isinstance(value, dict):
        return {title(k) if isinstance(k, tuple) else k: to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def main(args):
    warnings.simplefilter("ignore", stats.ConstantInputWarning)  # of spearmanr within a subset; such rho are given as -
    tables = {space: analyse(space, columns, args) for space, columns in read(args.folders, args.score).items()}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(tables, out)
    lines = write_report(tables, figures, args, out)
    text = json.dumps(
        to_json({"score": args.score, "bootstrap": args.bootstrap, "spaces": tables}), indent=1, allow_nan=False
    )
    (out / "correlations.json").write_text(text + "\n", encoding="utf-8")
    print("\n".join(line for line in lines if not line.startswith("!")))
    print(f"{out / 'report.md'}, correlations.json and {len(figures)} figures (PNG, PDF)")


if __name__ == "__main__":
    errors.run(main, parse_args())
