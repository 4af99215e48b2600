"""How well does one task's ranking of architectures predict another's? Fig. 2-5 of the paper.

Reads every result.json below the folders, or sweep_summary.json of the paper's public release;
NAME=FOLDER calls the data set NAME. Writes OUT/report.md, OUT/correlations.json and the figures.

    python correlate.py runs/sample_darts_shapes
"""

import argparse
import json
import math
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path

import cli
import numpy as np
from cli import NUMBER, InputError, at_least
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy import special, stats

import genotypes

SPACES = {"darts": "DARTS", "nasbench101": "NAS-Bench-101"}
STYLES = {  # of a task: colour, marker
    "cls": ("#555555", "D"),
    "rot": ("#1b9e77", "o"),
    "col": ("#d95f02", "s"),
    "jig": ("#7570b3", "^"),
}
PAPER_RHO = {  # of a task on CIFAR-10 with classification on ImageNet
    "darts": {"rot": "0.82", "col": "0.77", "jig": "0.87", "cls": "0.90"},
    "nasbench101": {"rot": "0.74", "col": "0.69", "jig": "0.79", "cls": "0.80"},
}

ROW = {"m": int, "mean": NUMBER, "std": NUMBER, "seconds": NUMBER}
FOUND = {"random_search": [{"objective": str, "target": str, "curve": [ROW]}]}  # shape of the JSON


def parse_args(argv=None):
    text, _ = __doc__.split("\n", 1)
    parser = argparse.ArgumentParser(description=text, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("folders", nargs="+", type=cli.path, metavar="[NAME=]FOLDER", help="of data set NAME")
    add("--out", type=cli.path, metavar="DIR", default="runs/correlation", help="where to write")
    add("--score", choices=["best", "final"], default="best", help="the epoch that counts")
    text = "the tasks that are ranked by the loss of their last epoch instead"
    add("--by_loss", nargs="+", choices=["rot", "col", "jig"], default=[], help=text)
    add("--bootstrap", type=at_least(100, int), default=2000, help="samples for the intervals")
    add("--seed", type=at_least(0, int), default=0, help="of the bootstrap")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Reading: a training is its result.json, or the same of the release; higher scores are better.


def recipe(identity) -> dict:
    """The settings that comparable trainings, or searches, share. --max_macs chooses a width for
    each cell; a search splits its images by its seed."""
    varying = {"seed", "genotype"} | ({"width"} if identity.get("max_macs") else set())
    varying |= {"split"} if "alpha_lr" in identity else set()
    return {name: value for name, value in identity.items() if name not in varying}


def read_result(path, score, by_loss):
    result = genotypes.read_result(path)
    key = genotypes.architecture_key(genotypes.parse_arch(result, path))
    value = result[score] if result["higher_is_better"] else -result[score]
    if result["task"] in by_loss:
        cli.check_shape(result["epochs"], [{"loss": NUMBER}], path, "epochs")
        value = -result["epochs"][-1]["loss"]
    training = {"key": key, "score": 1.0 * value, "params": 1.0 * result["params"]}
    yield result | training | {"recipe": recipe(result["identity"])}


def read_release(path, score, by_loss):
    space, dataset, task, seed = ("", "", "", *path.absolute().parent.parts)[-4:]
    space = space.replace("nas_bench", "nasbench101")
    if space not in SPACES or score != "best" or by_loss:
        why = "expected darts|nas_bench/<data set>/<task>/<run>/, --score best and no --by_loss"
        raise InputError(f"{path}: {why}")
    shared = {"space": space, "dataset": dataset, "task": task, "seed": seed}
    shared |= {"params": math.nan, "seconds": math.nan, "recipe": {}}
    a_job = {"job_id": (int, str), "min_test_top1": (*NUMBER, None, [(*NUMBER, None)])}
    a_job |= {"net": {"genotype": dict}} if space == "darts" else {}
    for job in cli.read_json(path, {"job_summaries": [a_job]})["job_summaries"]:
        arch = str(job["job_id"])
        key = json.dumps(job["net"]["genotype"], sort_keys=True) if space == "darts" else arch
        errors = np.hstack([math.nan, job["min_test_top1"]]).astype(float)  # lowest so far
        yield shared | {"arch": arch, "key": key, "score": 100 - errors[-1]}


def read(folders, score, by_loss=()) -> dict:
    """{space: {(data set, task): {key of an architecture: {seed: training}}}}"""
    readers = {"result.json": read_result, "sweep_summary.json": read_release}
    hint = "for the same data set and task; give the folders different names, NAME=FOLDER"
    spaces, recipes = defaultdict(lambda: defaultdict(lambda: defaultdict(dict))), {}
    for text in folders:
        named = "=" in text and not Path(text).is_dir()
        dataset, folder = text.split("=", 1) if named else ("", text)
        paths = sorted(path for path in Path(folder).rglob("*.json") if path.name in readers)
        if not folder or not paths:
            raise InputError(f"{folder}: no such folder, or no {' or '.join(readers)} in it")
        for path in paths:
            for training in readers[path.name](path, score, by_loss):
                space, a = training["space"], (dataset or training["dataset"], training["task"])
                seeds = spaces[space][a][training["key"]]
                this, seed = training["recipe"], training["seed"]
                first = recipes.setdefault((space, a), this)
                differ = [k for k in first | this if first.get(k) != this.get(k)]
                wrong = [f"{k} = {this.get(k)!r}, but {first.get(k)!r} elsewhere" for k in differ]
                if seed in seeds:
                    wrong.append(f"a second result of {training['arch']}, seed {seed}")
                if wrong:
                    raise InputError(f"{path}: {wrong[0]}, {hint}")
                seeds[seed] = training
    return spaces


def of_seeds(column, field):
    """A field of the trainings of n architectures, (seeds, n)"""
    seeds = sorted(column[0], key=str)
    return np.array([[runs[seed][field] for runs in column] for seed in seeds])


def common_table(space, columns):
    """{"<data set> <task>": [{seed: training}, ...] of the same n architectures}, and notes. Where
    one lacks a seed, its mean would be one over other seeds, which are better or worse."""
    complete = []
    for column in columns.values():
        seeds = set().union(*column.values())
        finite = [k for k, runs in column.items() if np.isfinite(of_seeds([runs], "score")).all()]
        complete.append({key for key in finite if len(column[key]) == len(seeds)})
    common = sorted(set.intersection(*complete))
    if len(common) < 3:
        why = f"a finite score of each seed in all of {', '.join(map(' '.join, columns))}"
        why = f"{len(common)} architectures have {why}; at least 3 are needed"
        raise InputError(f"{SPACES[space]}: {why}")
    table, notes, datasets = {}, [], [dataset for dataset, _ in columns]
    for a in sorted(columns, key=lambda a: (datasets.index(a[0]), [*STYLES, a[1]].index(a[1]))):
        label, others = " ".join(a), columns[a].keys() - common
        if others:
            names = ", ".join(sorted([*columns[a][key].values()][0]["arch"] for key in others))
            why = f"{len(others)} left out, without a finite score of each seed everywhere: {names}"
            notes.append(f"{label}: {why}")
        column = [columns[a][key] for key in common]
        scores = of_seeds(column, "score").mean(0)
        if np.ptp(scores):
            table[label] = column
        else:
            why = f"all {len(common)} architectures have {scores[0]:.4g}, no ranking; left out"
            notes.append(f"{label}: {why}")
    if len(table) < 2:
        raise InputError(f"{SPACES[space]}: fewer than two rankings. {'. '.join(notes)}")
    return table, notes


# --------------------------------------- Statistics of rankings: scores (n,), the higher the better


@np.errstate(invalid="ignore", divide="ignore")
def rank_correlation(x, y):
    """Spearman's rho along the last axis; NaN where x or y is constant."""
    x, y = (stats.rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


@np.errstate(invalid="ignore", divide="ignore")
def partial_correlation(x, y, z):
    """Of x and y with the ranks of z taken out; NaN where z is constant."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, z), rank_correlation(y, z)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def interval(rhos):
    """95%, without constant samples, for which scipy.stats.bootstrap would give NaN, and those
    whose seeds agree in nothing; unknown where they are more than one in 20."""
    finite = rhos[np.isfinite(rhos)]
    known = len(finite) >= 0.95 * len(rhos)
    return np.quantile(finite, [0.025, 0.975]).tolist() if known else [math.nan] * 2


def between_seeds(scores):
    """The mean rho between two of the seeds (k, ..., n); NaN for a single one."""
    rhos = [rank_correlation(a, b) for a, b in combinations(scores, 2)]
    return np.mean(rhos, axis=0) if rhos else np.full(scores.shape[1:-1], np.nan)


@np.errstate(invalid="ignore", divide="ignore")
def noise_ceiling(scores):
    """The highest rho that a mean over k seeds (k, ..., n) can have with anything: the root of its
    reliability, the rho between two seeds stepped up to k by Spearman and Brown."""
    k, rho = len(scores), between_seeds(scores)
    return np.sqrt(k * rho / (1 + (k - 1) * rho))


def in_top(scores, k):
    """Of each of n scores the probability to be among the k highest, ties at random."""
    high, low = stats.rankdata(scores, "max"), stats.rankdata(scores, "min") - 1
    return np.clip((k - len(scores) + high) / (high - low), 0, 1)


@np.errstate(invalid="ignore", divide="ignore")
def compare(x, y, params, sample, ceiling) -> dict:
    """How well x predicts y, also at the same number of parameters, which may be NaN, and without
    the noise of trainings: rho corrected for attenuation, over the product of the noise ceilings of
    x and y. `sample`: the architectures of each sample of the bootstrap, (samples, n); `ceiling`:
    the product, then in each sample, (1 + samples,)."""
    n, rhos = len(x), rank_correlation(x[sample], y[sample])
    k, half = max(1, round(n / 10)), np.argsort(-y, kind="stable")[: (n + 1) // 2]
    fewer = [sample[:, : 2**k] for k in range(2, (n - 1).bit_length())]
    growth = [[few.shape[1], *interval(rank_correlation(x[few], y[few]))] for few in fewer]
    return {
        "n": n,
        "rho": rank_correlation(x, y),
        "rho_interval": interval(rhos),
        "rho_intervals_of_n": [*growth, [n, *interval(rhos)]],
        "true_rho": rank_correlation(x, y) / ceiling[0],
        "true_rho_interval": interval(rhos / ceiling[1:]),
        "p": stats.spearmanr(x, y).pvalue if n >= 10 else math.nan,  # its formula needs many
        "tau": stats.kendalltau(x, y).statistic,
        "top10_overlap": (in_top(x, k) * in_top(y, k)).sum() / k,
        "rho_best_half": rank_correlation(x[half], y[half]),
        "partial_rho": partial_correlation(x, y, params),
        "partial_rho_interval": interval(partial_correlation(x[sample], y[sample], params[sample])),
    }


def best_of(proxy, target, sizes):
    """For each size m, mean and standard deviation of the target of the best by the proxy among m
    architectures, over all draws of m of the n without replacement."""
    high = stats.rankdata(proxy, "max").astype(int)
    low = stats.rankdata(proxy, "min").astype(int) - 1
    ranks = np.arange(len(proxy) + 1)
    for m in sizes:
        ways = special.gammaln(ranks + 1) - special.gammaln(ranks - m + 1)
        below = np.exp(ways - ways[-1])  # probability that all m are among the lowest
        weights = (below[high] - below[low]) / (high - low)  # of each to win, ties at random
        mean = (weights * target).sum()
        yield mean, np.sqrt((weights * (target - mean) ** 2).sum())


def random_search(proxy, target, seconds) -> list:
    """Fig. 5, which the paper estimates by ceil(n / m) draws of m = 1, 2, 4, ... < n architectures:
    what a search finds that trains m random ones on the proxy and takes the best, and its cost."""
    sizes = [2**k for k in range((len(proxy) - 1).bit_length())]
    rows = zip(sizes, best_of(proxy, target, sizes))
    return [dict(m=m, mean=mean, std=std, seconds=m * seconds) for m, (mean, std) in rows]


def analyse(space, columns, args) -> dict:
    """Every number about a space."""
    table, notes = common_table(space, columns)
    scores = {a: of_seeds(column, "score") for a, column in table.items()}
    means = {a: values.mean(0).round(9) for a, values in scores.items()}  # equal ones are ties
    n = len(next(iter(means.values())))
    sample = np.random.default_rng(args.seed).integers(n, size=(args.bootstrap, n))
    ceilings = {
        a: np.append(noise_ceiling(x), noise_ceiling(x[:, sample])) for a, x in scores.items()
    }
    targets = [a for a in table if a.endswith((" cls", " seg"))]  # with labels
    pairs = [(a, b) for b in targets for a in table if a != b]
    pairs += combinations([a for a in table if a not in targets], 2)
    compared, searches = [], []
    for a, b in cli.progress(pairs, f"pairs of rankings compared, of {len(pairs)}"):
        params, ceiling = of_seeds(table[b], "params").mean(0), ceilings[a] * ceilings[b]
        rhos = compare(means[a], means[b], params, sample, ceiling)
        compared.append({"x": a.rsplit(" ", 1), "y": b.rsplit(" ", 1), **rhos})
    for b, a in product(targets, table):
        seconds = of_seeds(table[a], "seconds").sum(0).mean()
        curve = random_search(means[a], means[b], seconds)
        searches.append({"proxy": a, "target": b, "curve": curve})
        searches[-1]["objective"] = "{task} on {dataset}".format(**[*table[a][0].values()][0])
    return {
        "n": n,
        "archs": [[*runs.values()][0]["arch"] for runs in [*table.values()][0]],
        "scores": means,
        "pairs": compared,
        "notes": notes,
        "stability": {a: {"seeds": len(x), "rho": between_seeds(x)} for a, x in scores.items()},
        "random_search": searches,
    }


# --------------------------------------------------------------------------------- Figures and text


def draw_scatter(space, numbers, by_loss):
    """Fig. 2-4: rows for each target, with a panel for each predictor and a robust line."""
    predictors = len(numbers["scores"]) - 1
    targets = len(numbers["random_search"]) // (predictors + 1)
    columns = min(predictors, 4)
    rows = math.ceil(predictors / columns)  # of a target
    figure = Figure(figsize=(3.2 * columns, 2.8 * targets * rows), layout="constrained")
    axes = figure.subplots(targets * rows, columns, squeeze=False).reshape(targets, -1)
    for ax in axes[:, predictors:].flat:
        ax.set_axis_off()
    for ax, pair in zip(axes[:, :predictors].flat, numbers["pairs"]):
        predictor, target = " ".join(pair["x"]), " ".join(pair["y"])
        x, y = numbers["scores"][target], numbers["scores"][predictor]
        color, marker = STYLES.get(pair["x"][1], ("black", "P"))
        ax.scatter(x, y, s=14, alpha=0.6, color=color, marker=marker, linewidths=0)
        ax.axline((np.median(x), np.median(y)), slope=stats.theilslopes(y, x).slope, color=color)
        ax.set_title(f"ρ = {format_rho(pair['rho'], pair['rho_interval'])}", fontsize=10)
        unit = ", -loss" if pair["x"][1] in by_loss else ""
        ax.set_xlabel(cli.plain(f"{target} ({SPACES[space]})"))
        ax.set_ylabel(cli.plain(predictor + unit))
        ax.grid(alpha=0.3)
    return figure


def draw_experiments(space, numbers):
    """A column for each target. Fig. 5, the mean and two deviations by each predictor, against the
    architectures drawn and, where it is known, the time to train them; below, rho with the 95%
    interval that it would have with fewer architectures. Dotted: the deviations, the intervals."""
    targets, curves = list(dict.fromkeys(s["target"] for s in numbers["random_search"])), []
    for search in numbers["random_search"]:
        m, mean, std, seconds = np.transpose([[*row.values()] for row in search["curve"]])
        found = mean, mean - 2 * std, mean + 2 * std
        curves.append(("architectures drawn", search["proxy"], search["target"], m, *found))
        if np.isfinite(seconds).all():
            row = "hours to train them", search["proxy"], search["target"]
            curves.append((*row, seconds / 3600, *found))
    for pair in numbers["pairs"]:
        m, *band = np.transpose(pair["rho_intervals_of_n"])
        rho = np.full(len(m), pair["rho"])
        curves.append(("architectures", " ".join(pair["x"]), " ".join(pair["y"]), m, rho, *band))
    rows = list(dict.fromkeys(curve[0] for curve in curves))
    figure = Figure(figsize=(5 * len(targets), 3.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(targets), squeeze=False)
    for row, predictor, target, x, y, low, high in curves:
        if target in targets:
            ax = axes[rows.index(row), targets.index(target)]
            dataset, task = predictor.rsplit(" ", 1)
            color, marker = STYLES.get(task, ("black", "P"))
            line = "-" if target.rsplit(" ", 1)[0] == dataset else "--"
            for limit in (low, high):
                ax.plot(x, limit, ":", color=color, lw=0.8)
            ax.plot(x, y, line + marker, color=color, ms=5, label=cli.plain(predictor))
            what = "rho [95%]" if row == "architectures" else f"{target} of the best"
            ax.set(xlabel=row, ylabel=cli.plain(what))
            ax.set_xscale("log", base=2)
            if row.startswith("hours"):
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.grid(alpha=0.3)
    for ax in axes[0]:
        ax.set_title(SPACES[space])
        ax.legend(fontsize=8, handlelength=3)
    return figure


def format_rho(rho, interval=None):
    known = interval is not None and np.isfinite(interval).all()
    text = f"{rho:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if known else "")
    return text if np.isfinite(rho) else None


def paper_rho(space, x, y):
    """The paper's rho of two (data set, task), if it has one."""
    source, target = (dataset.lower().replace("-", "") for dataset, _ in (x, y))
    if (source, target, y[1]) == ("cifar10", "imagenet", "cls"):
        return PAPER_RHO[space].get(x[1])
    within = source == target in ("cifar10", "imagenet") and y[1] == "cls"
    return "typically > 0.8" if within else None


def report_lines(space, numbers) -> list:
    notes = [f"- {note}" for note in numbers["notes"]]
    for label, found in numbers["stability"].items():
        if found["seeds"] > 1:
            notes.append(f"- {label}: rho {found['rho']:.2f} between two of {found['seeds']} seeds")
    head = ["predictor", "target", "rho [95%]", "paper", "p", "tau", "top-10% overlap"]
    head += [
        "rho, best half of targets",
        "rho, params taken out [95%]",
        "rho, noise taken out [95%]",
    ]
    rows = []
    for pair in numbers["pairs"]:
        x, y = pair["x"], pair["y"]
        row = [" ".join(x), " ".join(y), format_rho(pair["rho"], pair["rho_interval"])]
        p = f"{pair['p']:.2g}" if math.isfinite(pair["p"]) else None
        row += [paper_rho(space, x, y), p, f"{pair['tau']:.2f}"]
        row += [f"{pair['top10_overlap']:.2f}", format_rho(pair["rho_best_half"])]
        for name in ("partial_rho", "true_rho"):
            row.append(format_rho(pair[name], pair[f"{name}_interval"]))
        rows.append(row)
    title = f"## {SPACES[space]}, n = {numbers['n']}"
    lines = [title, "", *cli.markdown_table(head, rows), *notes, ""]
    rows = []
    for search in numbers["random_search"]:
        curve, row = search["curve"], [search["proxy"], search["target"]]
        row += [f"{found['mean']:.2f} ± {found['std']:.2f}" for found in curve]
        seconds = curve[0]["seconds"]
        rows.append([*row, cli.format_seconds(seconds) if math.isfinite(seconds) else None])
    if rows:
        head = ["the best by", "its accuracy on", *(f"of {found['m']}, ± std" for found in curve)]
        lines += cli.markdown_table([*head, "training of one"], rows)
    return lines


def main(args):
    columns = read(args.folders, args.score, args.by_loss)
    if not columns:
        raise InputError(f"{', '.join(args.folders)}: no training in the files there")
    tasks = {task for rankings in columns.values() for _, task in rankings}
    if missing := sorted({*args.by_loss} - tasks):
        raise InputError(f"--by_loss {missing[0]}: no training of it in these folders")
    spaces = {space: analyse(space, columns[space], args) for space in columns}
    out, lines, figures = Path(args.out), ["# Rank correlations", ""], {}
    for space, numbers in spaces.items():
        lines += report_lines(space, numbers)
        if numbers["random_search"]:
            figures[f"scatter_{space}"] = draw_scatter(space, numbers, args.by_loss)
            figures[f"experiments_{space}"] = draw_experiments(space, numbers)
    losses = f", the last loss of {', '.join(args.by_loss)}" if args.by_loss else ""
    how = f"The {args.score} epoch{losses}, mean over seeds"
    lines.append(f"{how}; {args.bootstrap} bootstrap samples.\n")
    print("\n".join(lines))
    out.mkdir(parents=True, exist_ok=True)
    found = dict(score=args.score, by_loss=args.by_loss, bootstrap=args.bootstrap, spaces=spaces)
    searches = spaces.get("darts", {}).get("random_search", [])  # for report.py
    found["random_search"] = [s for s in searches if math.isfinite(s["curve"][0]["seconds"])]
    text = json.dumps(found, default=np.ndarray.tolist)
    cli.write_json(out / "correlations.json", json.loads(text, parse_constant=lambda _: None))
    for name, figure in figures.items():
        lines.append(f"![{name}]({name}.png)\n")
        for ending in ("png", "pdf"):
            cli.save_figure(figure, out / f"{name}.{ending}", bbox_inches="tight")
    cli.write_text(out / "report.md", "\n".join(lines))
    print(f"{out / 'report.md'}, correlations.json and the figures as PNG and PDF")


if __name__ == "__main__":
    cli.run(main, parse_args)
