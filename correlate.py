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
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import cli
from cli import InputError, at_least, markdown_table, read_json
from genotypes import nasbench_hash, parse_nasbench

SPACES = {"darts": "DARTS", "nasbench101": "NAS-Bench-101"}
SPACE_FOLDERS = {"darts": "darts", "nas_bench": "nasbench101"}  # of the public release
TASKS = {"cls": "classification", "rot": "rotation", "col": "colorization", "jig": "jigsaw"}
COLORS = {"rot": "#1b9e77", "col": "#d95f02", "jig": "#7570b3", "cls": "#555555"}
CURVES = [
    ("experiments", "architectures drawn", "{} of the best"),
    ("epochs", "training epoch", "rho with {}"),
]
FEWEST = 3


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Rank correlations between tasks and data sets, with figures."
    )
    parser.add_argument(
        "folders", nargs="+", metavar="[NAME=]FOLDER", help="results below it, of the data set NAME"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="runs/correlation",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument(
        "--score",
        choices=["best", "final"],
        default="best",
        help="the epoch that counts (default: best)",
    )
    parser.add_argument(
        "--bootstrap",
        type=at_least(100, int),
        default=2000,
        metavar="N",
        help="samples for the intervals",
    )
    parser.add_argument(
        "--seed", type=at_least(0, int), default=0, help="of bootstrap and random experiments"
    )
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------------
# Reading. A column is one (data set, task) of a space: {architecture: {seed: run}}. A run has its architecture's name, score
# and sign (-1 if lower is better), by epoch the scores ([] if not known), the number of parameters (NaN if not known).


def read_result(path, score):
    """(space, data set, task, architecture, seed, settings, run) of a result of train.py"""
    result = read_json(path)
    genotype, space = result["genotype"], result.get("space", "darts")
    key = (
        json.dumps(genotype) if space == "darts" else nasbench_hash(parse_nasbench(genotype, path))
    )
    settings = {
        k: v for k, v in result["identity"].items() if k not in ("seed", "genotype", "split")
    }
    run = {
        "name": result["arch"],
        "score": result[score],
        "sign": 1 if result["higher_is_better"] else -1,
        "epochs": [epoch[result["metric"]] for epoch in result["epochs"]],
        "params": result["params"],
    }
    yield space, result["dataset"], result["task"], key, result["seed"], settings, run


def read_summary(path, score):
    """The same of the paper's public release. It holds the lowest error so far, so a list's last element is the best."""
    if score != "best":
        raise InputError(f"{path}: the public release holds only the best epoch; use --score best")
    space, dataset, task, seed = path.absolute().parent.parts[-4:]
    if space not in SPACE_FOLDERS:
        raise InputError(
            f"{path}: expected <space>/<dataset>/<task>/<run>/, a space being {' or '.join(SPACE_FOLDERS)}"
        )
    for job in read_json(path)["job_summaries"]:
        error, name = job["min_test_top1"], str(job["job_id"])
        error = error[-1] if isinstance(error, list) else error
        key = json.dumps(job["net"]["genotype"], sort_keys=True) if space == "darts" else name
        accuracy = math.nan if error is None else 100 - error
        run = {"name": name, "score": accuracy, "sign": 1, "epochs": [], "params": math.nan}
        yield SPACE_FOLDERS[space], dataset, task, key, seed, {}, run


READERS = {"result.json": read_result, "sweep_summary.json": read_summary}


def read(folders, score) -> dict:
    """{space: {(data set, task): column}}"""
    columns, settings_of = {}, {}
    for text in folders:
        name, _, folder = text.rpartition("=")
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder")
        paths = sorted(path for path in Path(folder).rglob("*.json") if path.name in READERS)
        if not paths:
            raise InputError(f"{folder}: neither {' nor '.join(READERS)} below it")
        for path in paths:
            try:
                found = list(READERS[path.name](path, score))
            except (KeyError, TypeError, IndexError) as error:
                what = f"{type(error).__name__} {error}"
                raise InputError(
                    f"{path}: not a result of train.py or of the public release ({what})"
                ) from None
            for space, dataset, task, key, seed, settings, run in found:
                label = name or dataset, task
                first = settings_of.setdefault((space, label), settings)
                wrong = [
                    f"trained with {option} = {settings.get(option)}, others with {first.get(option)}"
                    for option in first | settings
                    if first.get(option) != settings.get(option)
                ]
                seeds = columns.setdefault(space, {}).setdefault(label, {}).setdefault(key, {})
                wrong += [f"a second result of {run['name']}, seed {seed}"] if seed in seeds else []
                if wrong:
                    raise InputError(
                        f"{path}: {wrong[0]}, for the same data set and task; give the folders different "
                        "names, NAME=FOLDER"
                    )
                seeds[seed] = run
    datasets = list(dict.fromkeys(dataset for space in columns.values() for dataset, _ in space))

    def place(label):  # tasks in the paper's order, others last
        return datasets.index(label[0]), [*TASKS, label[1]].index(label[1])

    return {
        space: {label: columns[space][label] for label in sorted(columns[space], key=place)}
        for space in columns
    }


def one(seeds):
    """A run of an architecture, for what is the same for all seeds."""
    return next(iter(seeds.values()))


def common_table(space, columns):
    """Of the architectures that all columns have with finite scores: {column: scores (n,), means over seeds}, {column:
    [{seed: run}]}, and lines that say what was left out."""
    notes, usable = [], {}

    def left_out(label, keys, why):
        if keys:
            names = ", ".join(sorted(one(columns[label][key])["name"] for key in keys))
            notes.append(f"{title(label)}: {len(keys)} {why}, left out: {names}")

    for label, column in columns.items():
        bad = {
            key
            for key, seeds in column.items()
            if not all(math.isfinite(run["score"]) for run in seeds.values())
        }
        left_out(label, bad, "with a score that is no number")
        usable[label] = column.keys() - bad
    keys = sorted(set.intersection(*usable.values()))
    for label in columns:
        left_out(label, usable[label].difference(keys), "not common to all")
    if len(keys) < FEWEST:
        raise InputError(
            f"{SPACES[space]}: {len(keys)} architectures have results in all of "
            f"{', '.join(map(title, columns))}; at least {FEWEST} are needed"
        )
    scores, runs = {}, {}
    for label, column in columns.items():
        values = np.array([np.mean([run["score"] for run in column[key].values()]) for key in keys])
        if np.ptp(values):
            scores[label], runs[label] = values, [column[key] for key in keys]
        else:
            notes.append(
                f"{title(label)}: all {len(keys)} architectures have {values[0]:.4g}, no ranking; left out"
            )
    if len(scores) < 2:
        raise InputError(
            f"{SPACES[space]}: fewer than two rankings to compare. " + ". ".join(notes)
        )
    return scores, runs, notes


def title(label):
    return f"{label[0]} {label[1]}"


# ---------------------------------------------------------------------------------------------------------------------
# Statistics of two rankings, (n,) each, the higher the better


@np.errstate(invalid="ignore", divide="ignore")
def rank_correlation(x, y):
    """Spearman's rho along the last axis; NaN where one of them is constant."""
    x, y = (stats.rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


@np.errstate(invalid="ignore", divide="ignore")
def partial_rank_correlation(x, y, z):
    """Of x and y with the ranks of z taken out (for ranks, params and log params are the same); NaN where z is constant."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def compare(x, y, params, bootstrap, seed) -> dict:
    """How well x predicts y. Intervals: 95% of bootstrap samples of architectures, by percentile. `params` may be NaN."""
    n = len(x)
    sample = np.random.default_rng(seed).integers(n, size=(bootstrap, n))

    def interval(values):
        values = values[np.isfinite(values)]
        return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else None

    k = max(1, round(n / 10))
    by_x, by_y = (np.argsort(-v, kind="stable") for v in (x, y))
    half = by_y[: (n + 1) // 2]
    return {
        "n": n,
        "rho": rank_correlation(x, y),
        "rho_interval": interval(rank_correlation(x[sample], y[sample])),
        "p": stats.spearmanr(x, y).pvalue,
        "tau": stats.kendalltau(x, y).statistic,
        "top10_overlap": len(np.intersect1d(by_x[:k], by_y[:k])) / k,
        "rho_best_half": rank_correlation(x[half], y[half]),  # of the half that is best by y
        "partial_rho": partial_rank_correlation(x, y, params),
        "partial_rho_interval": interval(
            partial_rank_correlation(x[sample], y[sample], params[sample])
        ),
    }


def seed_stability(runs):
    """The mean rho between two seeds of a column over the architectures that have all seeds, or None: a noise ceiling."""
    seeds = sorted(set.intersection(*map(set, runs)), key=str)
    scores = [[run[seed]["score"] for run in runs] for seed in seeds]
    rhos = [rank_correlation(a, b) for a, b in itertools.combinations(scores, 2)]
    return {"seeds": len(seeds), "rho": np.mean(rhos) if rhos else None}


def random_experiments(proxy, target, seed) -> list:
    """Fig. 5: for m = 1, 2, 4, ... < n, ceil(n / m) times, draw m architectures, take the best by the proxy and note its
    target. [(m, mean, standard deviation), ...]"""
    rng, n, curve = np.random.default_rng(seed), len(proxy), []
    for m in (2**k for k in range((n - 1).bit_length())):
        drawn = [rng.choice(n, m, replace=False) for _ in range(math.ceil(n / m))]
        found = [target[some[np.argmax(proxy[some])]] for some in drawn]
        curve.append((m, np.mean(found), np.std(found)))
    return curve


def analyse(space, columns, args) -> dict:
    """Every number about a space."""
    raw, runs, notes = common_table(space, columns)
    signs = {a: one(kept[0])["sign"] for a, kept in runs.items()}
    scores = {a: signs[a] * raw[a] for a in raw}  # the higher the better
    targets = [a for a in scores if a[1] == "cls"]
    wanted = [(a, b) for b in targets for a in scores if a != b]
    wanted += itertools.combinations([a for a in scores if a not in targets], 2)
    pairs = []
    for a, b in wanted:
        params = np.array([one(seeds)["params"] for seeds in runs[b]])
        pairs.append(
            {
                "x": list(a),
                "y": list(b),
                **compare(scores[a], scores[b], params, args.bootstrap, args.seed),
            }
        )
    histories = {}  # (epochs, n) of each column, means over seeds
    for a, kept in runs.items():
        histories[a] = np.transpose(
            [np.mean([run["epochs"] for run in seeds.values()], axis=0) for seeds in kept]
        )
    known = [a for a in scores if len(histories[a])]
    return {
        "n": len(next(iter(raw.values()))),
        "archs": [one(seeds)["name"] for seeds in next(iter(runs.values()))],
        "scores": raw,
        "pairs": pairs,
        "notes": notes,
        "stability": {a: seed_stability(kept) for a, kept in runs.items()},
        "matrix": {a: {b: rank_correlation(scores[a], scores[b]) for b in scores} for a in scores},
        "experiments": {
            b: {a: random_experiments(scores[a], raw[b], args.seed) for a in scores}
            for b in targets
        },
        "epochs": {
            b: {
                a: [signs[a] * rank_correlation(epoch, scores[b]) for epoch in histories[a]]
                for a in known
            }
            for b in targets
            if known
        },
    }


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def save(figure, out, name):
    for ending in ("png", "pdf"):
        figure.savefig(out / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    return name


def scatter(tables, dataset, tasks, target, out, name):
    """Fig. 2-4: a row for each space, a column for each task; x: accuracy of the target, y: accuracy of the task."""
    figure = Figure(figsize=(3.2 * len(tasks), 2.8 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), len(tasks), squeeze=False)
    for ax, ((space, table), task) in zip(axes.flat, itertools.product(tables.items(), tasks)):
        if not {(dataset, task), target} <= table["scores"].keys():
            ax.set_axis_off()
            continue
        x, y, color = (
            table["scores"][target],
            table["scores"][dataset, task],
            COLORS.get(task, "#555555"),
        )
        slope, intercept, _, _ = stats.theilslopes(y, x)
        ends = np.array([x.min(), x.max()])
        ax.scatter(x, y, s=14, alpha=0.6, color=color, linewidths=0)
        ax.plot(ends, intercept + slope * ends, color=color)
        pair = next(
            p for p in table["pairs"] if p["x"] == [dataset, task] and p["y"] == list(target)
        )
        rho = with_interval(pair["rho"], pair["rho_interval"])
        ax.set_title(f"{TASKS.get(task, task)}: $\\rho$ = {rho}", fontsize=10)
        ax.set(xlabel=f"{title(target)} ({SPACES[space]})", ylabel=f"{dataset} {task}")
        ax.grid(alpha=0.3)
    return save(figure, out, name)


def matrix(space, table, out):
    labels = list(table["scores"])
    rho = np.array([[table["matrix"][a][b] for b in labels] for a in labels])
    figure = Figure(
        figsize=(1.5 + 0.75 * len(labels), 1.0 + 0.65 * len(labels)), layout="constrained"
    )
    ax = figure.subplots()
    figure.colorbar(ax.imshow(rho, cmap="RdBu_r", vmin=-1, vmax=1))
    ax.set_xticks(range(len(labels)), map(title, labels), rotation=45, ha="right")
    ax.set_yticks(range(len(labels)), map(title, labels))
    for (i, j), value in np.ndenumerate(rho):
        ax.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if abs(value) > 0.6 else "black",
        )
    ax.set_title(f"Spearman's $\\rho$, {SPACES[space]}, n = {table['n']}", fontsize=10)
    return save(figure, out, f"matrix_{space}")


def curves(space, panels, out, name, xlabel, ylabel):
    """A panel for each classification target, {target: {column: curve}}, a curve being (m, mean, standard deviation) of
    random experiments or the rho of each epoch."""
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for ax, (target, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels.items()
    ):
        if name == "experiments":
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        styles = dict(
            zip(
                dict.fromkeys(dataset for dataset, _ in lines),
                itertools.cycle(["-", "--", ":", "-."]),
            )
        )
        for (dataset, task), line in lines.items():
            color = COLORS.get(task, "#000000")
            if name == "experiments":
                x, y, std = np.array(line).T
                ax.fill_between(x, y - 2 * std, y + 2 * std, color=color, alpha=0.07, linewidth=0)
            else:
                x, y = range(1, len(line) + 1), line
            ax.plot(
                x, y, marker="o", ms=4, color=color, ls=styles[dataset], label=f"{dataset} {task}"
            )
        ax.set(xlabel=xlabel, ylabel=ylabel.format(title(target)), title=SPACES[space])
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return save(figure, out, f"{name}_{space}")


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
        for name, *axes in CURVES:
            names += [curves(space, table[name], out, name, *axes)] if table[name] else []
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Text


def with_interval(value, interval=None):
    return (
        f"{value:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")
        if np.isfinite(value)
        else None
    )


def write_report(tables, figures, args, out):
    lines = ["# Rank correlations between tasks", ""]
    for space, table in tables.items():
        lines += [f"## {SPACES[space]}, n = {table['n']}", ""]
        lines += [f"- {note}" for note in table["notes"]] + [""] * bool(table["notes"])
        head = [
            "predictor",
            "target",
            "rho [95%]",
            "p",
            "tau",
            "top-10% overlap",
            "rho, best half",
            "partial rho [95%]",
        ]
        lines += markdown_table(
            head,
            [
                [
                    title(p["x"]),
                    title(p["y"]),
                    with_interval(p["rho"], p["rho_interval"]),
                    f"{p['p']:.2g}",
                    f"{p['tau']:.2f}",
                    f"{p['top10_overlap']:.2f}",
                    with_interval(p["rho_best_half"]),
                    with_interval(p["partial_rho"], p["partial_rho_interval"]),
                ]
                for p in table["pairs"]
            ],
        )
        stable = {a: found for a, found in table["stability"].items() if found["seeds"] > 1}
        if stable:
            text = ", ".join(
                f"{title(a)} {with_interval(s['rho']) or '-'} ({s['seeds']} seeds)"
                for a, s in stable.items()
            )
            lines += [
                f"rho between two seeds of one column, the noise ceiling of a single seed: {text}.",
                "",
            ]
    lines += [
        f"Score of a training: its {args.score} epoch, mean over seeds. Intervals: {args.bootstrap} bootstrap samples "
        "of architectures. Best half: by the target. Partial rho: given the number of parameters.",
        "",
    ]
    lines += [f"![{name}]({name}.png)\n" for name in figures]
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return lines


def to_json(value):
    """Plain types: label tuples become text, arrays lists, NaN None."""
    if isinstance(value, dict):
        return {title(k) if isinstance(k, tuple) else k: to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(args):
    tables = {
        space: analyse(space, columns, args)
        for space, columns in read(args.folders, args.score).items()
    }
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(tables, out)
    lines = write_report(tables, figures, args, out)
    content = to_json({"score": args.score, "bootstrap": args.bootstrap, "spaces": tables})
    (out / "correlations.json").write_text(
        json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    print("\n".join(line for line in lines if not line.startswith("!")))
    print(f"{out / 'report.md'}, correlations.json and {len(figures)} figures (PNG, PDF)")


if __name__ == "__main__":
    cli.run(main, parse_args)
