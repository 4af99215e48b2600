"""Rank statistics against scipy; reading of results and of the public release; what is left out."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cli
import numpy as np
import pytest
from cli import InputError
from scipy import stats

import correlate
import genotypes

ROOT = Path(__file__).parent.parent


def test_statistics_against_scipy_with_ties():
    rng = np.random.default_rng(0)
    x, y, params = rng.integers(0, 6, 20) * 1.0, rng.integers(0, 6, 20) * 1.0, rng.random(20)
    sample = np.random.default_rng(1).integers(20, size=(500, 20))
    found = correlate.compare(x, y, params, sample, np.full(501, 0.5))
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["tau"] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found["p"] == pytest.approx(stats.spearmanr(x, y).pvalue)
    # partial correlation by regression of ranks
    rank_x, rank_y, rank_z = (stats.rankdata(v) for v in (x, y, params))
    rest = [r - np.polyval(np.polyfit(rank_z, r, 1), rank_z) for r in (rank_x, rank_y)]
    assert found["partial_rho"] == pytest.approx(np.corrcoef(*rest)[0, 1])
    # the interval, by hand
    rhos = [stats.spearmanr(x[i], y[i]).statistic for i in sample]
    assert found["rho_interval"] == pytest.approx(np.quantile(rhos, [0.025, 0.975]))
    assert found["true_rho"] == 2 * found["rho"]
    assert found["true_rho_interval"] == pytest.approx(np.quantile(rhos, [0.025, 0.975]) * 2)


def test_top_and_best_half():
    y = np.arange(20.0)
    x = y.copy()
    x[[18, 0]] = x[[0, 18]]
    found = correlate.compare(x, y, np.full(20, np.nan), np.array([range(20)]), np.ones(2))
    assert (
        found["top10_overlap"] == 0.5
        and np.isnan(found["partial_rho"])
        and np.isnan(found["partial_rho_interval"]).all()
    )
    assert found["rho_best_half"] == pytest.approx(stats.spearmanr(x[10:], y[10:]).statistic)


def test_ties_are_in_the_top_tenth_at_random():
    """The overlap of two rankings, as the mean over all orders of those that are equal."""
    x, y = np.repeat([1.0, 2, 3], [12, 5, 3]), np.repeat([3.0, 1, 2], [4, 12, 4])
    in_x, in_y = [17, 18, 19], [0, 1, 2, 3]  # two of each
    overlap = [
        len({*a} & {*b}) / 2
        for a in itertools.combinations(in_x, 2)
        for b in itertools.combinations(in_y, 2)
    ]
    found = correlate.compare(x, y, x, np.array([range(20)]), np.ones(2))
    assert found["top10_overlap"] == pytest.approx(np.mean(overlap)) == 0
    found = correlate.compare(y, y, x, np.array([range(20)]), np.ones(2))
    both = [
        len({*a} & {*b}) / 2
        for a in itertools.combinations(in_y, 2)
        for b in itertools.combinations(in_y, 2)
    ]
    assert found["top10_overlap"] == pytest.approx(np.mean(both)) == 0.5


def test_few_architectures_have_no_p():
    """Of three in the same order its formula says 0, where one order in three is as extreme."""
    x = np.arange(9.0)
    assert np.isnan(correlate.compare(x, x, x, np.array([range(9)]), np.ones(2))["p"])


def test_equal_means_of_seeds_are_ties(tmp_path):
    scores = {"a": (63.2, 63.4, 63.3), "b": (63.3, 63.2, 63.4), "c": (60.0, 60.0, 60.0)}
    assert np.mean(scores["a"]) != np.mean(scores["b"])
    columns = {}
    for task in ("cls", "rot"):
        columns["x", task] = {
            arch: {
                s: {
                    "score": v,
                    "arch": arch,
                    "params": 1.0,
                    "seconds": 1.0,
                    "task": task,
                    "dataset": "x",
                }
                for s, v in enumerate(values)
            }
            for arch, values in scores.items()
        }
    args = correlate.parse_args(["x", "--bootstrap", "100"])
    means = correlate.analyse("darts", columns, args)["scores"]["x rot"]
    assert means[0] == means[1] > means[2]


def test_best_of_is_the_mean_over_all_draws():
    """Fig. 5, by all draws of m architectures, also with ties, of which each is as likely."""
    proxy, target = np.array([3.0, 1, 2, 3, 0, 1]), np.array([5.0, 7, 1, 2, 9, 4])
    for m, (mean, std) in zip(range(1, 7), correlate.best_of(proxy, target, range(1, 7))):
        found = []
        for draw in itertools.combinations(range(6), m):
            best = [k for k in draw if proxy[k] == max(proxy[list(draw)])]
            found += [target[k] for k in best] * (2 // len(best))
        assert mean == pytest.approx(np.mean(found)) and std == pytest.approx(np.std(found))
    curve = correlate.random_search(proxy, target, 1.5)
    assert [(row["m"], row["seconds"]) for row in curve] == [(1, 1.5), (2, 3), (4, 6)]
    assert (curve[-1]["mean"], curve[-1]["std"]) == next(correlate.best_of(proxy, target, [4]))
    for m, (mean, _) in zip(
        (1, 2500), correlate.best_of(np.arange(5e3), np.arange(5e3), (1, 2500))
    ):
        assert mean + 1 == pytest.approx(m / (m + 1) * 5001)  # the largest of m of n, in the mean


def test_correction_for_attenuation():
    """Trainings whose noise is as large as the differences between architectures."""
    rng = np.random.default_rng(0)
    quality = rng.standard_normal(4000)
    x, y = quality + rng.standard_normal((3, 4000)), quality + rng.standard_normal((2, 4000))
    rho = stats.spearmanr(x.mean(0), y.mean(0)).statistic
    ceiling = correlate.noise_ceiling(x) * correlate.noise_ceiling(y)
    assert rho < 0.75 and rho / ceiling == pytest.approx(1, abs=0.03)
    r = np.mean([stats.spearmanr(x[i], x[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))])
    s = stats.spearmanr(*y).statistic
    assert ceiling == pytest.approx(np.sqrt(3 * r / (1 + 2 * r) * 2 * s / (1 + s)))
    assert np.isnan(correlate.noise_ceiling(x[:1]))
    noise = rng.standard_normal((2, 2, 4000))
    noise[1] = -noise[0]  # the seeds contradict each other: nothing is left
    assert np.isnan(correlate.noise_ceiling(noise[:, 0]))


def test_intervals_shrink_with_the_number_of_architectures():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(100)
    sample = rng.integers(100, size=(300, 100))
    found = correlate.compare(x, x + rng.standard_normal(100), x, sample, np.ones(301))
    growth = np.array(found["rho_intervals_of_n"])
    assert growth[:, 0].tolist() == [4, 8, 16, 32, 64, 100]
    assert (np.diff(growth[:, 2] - growth[:, 1]) < 0).all()
    assert growth[-1, 1:].tolist() == found["rho_interval"]


def test_partial_correlation_of_what_is_only_size():
    rng = np.random.default_rng(0)
    size = rng.random(400)
    x, y = size + 0.1 * rng.standard_normal(400), size + 0.1 * rng.standard_normal(400)
    sample = rng.integers(400, size=(200, 400))
    found = correlate.compare(x, y, size, sample, np.ones(201))
    assert found["rho"] > 0.8 and abs(found["partial_rho"]) < 0.15


def write_result(
    folder,
    arch,
    task,
    score,
    seed=1,
    params=1000,
    higher=True,
    dataset="cifar10",
    final=None,
    **args,
):
    digits = [genotypes.PRIMITIVES[arch // 8**k % 8] for k in range(8)]
    cell = {"normal": [[op, 0] for op in digits], "normal_concat": [2, 3, 4, 5]}
    cell |= {"reduce": cell["normal"], "reduce_concat": [2, 3, 4, 5]}
    epochs = [score - 1 if higher else score + 1, score] + [final] * (final is not None)
    path = folder / task / f"{arch}_s{seed}" / "result.json"
    path.parent.mkdir(parents=True)
    result = {
        "arch": f"{arch:05}",
        "space": "darts",
        "genotype": cell,
        "task": task,
        "dataset": dataset,
        "seed": seed,
        "metric": "top1",
        "higher_is_better": higher,
        "best": score,
        "final": score if final is None else final,
        "params": params,
        "epochs": [{"top1": value, "loss": value % 7} for value in epochs],
        "identity": {"seed": seed, "width": 4, "epochs": len(epochs), "lr": 0.1, **args},
        **{"macs": 10, "seconds": 1.5, "versions": {"torch": "2.9"}, "world_size": 1},
        **{"device": "CPU", "date": "2026-01-01", "args": {"arch": f"archs.json:{arch:05}"}},
    }
    path.write_text(json.dumps(result))


def run(out, *argv):
    correlate.main(correlate.parse_args([*map(str, argv), "--out", str(out), "--bootstrap", "100"]))
    return json.loads((out / "correlations.json").read_text())["spaces"]


def pair_of(table, x, y):
    return next(p for p in table["pairs"] if p["x"] == x and p["y"] == y)


def test_own_results(tmp_path, capsys):
    rng = np.random.default_rng(0)
    cls, rot = rng.random((2, 12)), rng.random((2, 12))
    for seed in (0, 1):
        for k in range(12):
            write_result(tmp_path / "a", k, "cls", 50 + cls[seed, k], seed, params=1000 + k)
            write_result(
                tmp_path / "a",
                k,
                "rot",
                60 + rot[seed, k],
                seed,
                params=1000 + k,
                final=60 - rot[seed, k],
            )
    write_result(tmp_path / "a", 99, "rot", 70, final=70)  # not trained on cls
    write_result(tmp_path / "a", 98, "rot", 70, final=70)
    table = run(tmp_path / "o", tmp_path / "a")["darts"]
    pair = pair_of(table, ["cifar10", "rot"], ["cifar10", "cls"])
    assert pair["n"] == 12 and pair["rho"] == pytest.approx(
        stats.spearmanr(cls.mean(0), rot.mean(0)).statistic
    )
    assert table["stability"]["cifar10 rot"] == {
        "seeds": 2,
        "rho": pytest.approx(stats.spearmanr(*rot).statistic),
    }
    out = capsys.readouterr().out
    assert (
        "cifar10 rot: 2 left out, without a finite score of each seed everywhere: 00098, 00099"
        in out
    )
    assert "n = 12" in out
    report = (tmp_path / "o" / "report.md").read_text()
    for name in ("scatter_darts", "experiments_darts"):
        assert f"({name}.png)" in report
        assert (tmp_path / "o" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "o" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    final = run(tmp_path / "f", tmp_path / "a", "--score", "final")["darts"]
    rho = stats.spearmanr(cls.mean(0), -rot.mean(0)).statistic
    assert pair_of(final, ["cifar10", "rot"], ["cifar10", "cls"])["rho"] == pytest.approx(rho)
    by_loss = run(tmp_path / "l", tmp_path / "a", "--by_loss", "rot")["darts"]
    losses = ((60 - rot) % 7).mean(0)  # of the last epochs
    rho = stats.spearmanr(cls.mean(0), -losses).statistic
    assert pair_of(by_loss, ["cifar10", "rot"], ["cifar10", "cls"])["rho"] == pytest.approx(rho)
    assert "The best epoch, the last loss of rot, mean over seeds" in capsys.readouterr().out
    with pytest.raises(InputError, match="--by_loss jig: no training of it"):
        run(tmp_path / "l", tmp_path / "a", "--by_loss", "jig", "rot")
    path = tmp_path / "a" / "rot" / "3_s1" / "result.json"
    path.write_text(path.read_text().replace('"loss": ', '"lost": '))
    with pytest.raises(InputError, match='"epochs" 0 "loss" is None, where int or float is due'):
        run(tmp_path / "l", tmp_path / "a", "--by_loss", "rot")


def test_two_data_sets_of_one_name_are_told_apart(tmp_path):
    for k in range(4):
        for folder, lr in (("a", 0.1), ("b", 0.2)):
            write_result(tmp_path / folder, k, "cls", k * lr + 1, lr=lr)
    with pytest.raises(InputError, match="lr = 0.2.*NAME=FOLDER"):
        run(tmp_path / "o", tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="second result"):
        run(tmp_path / "o", tmp_path / "a", tmp_path / "a")
    table = run(tmp_path / "o", f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}")["darts"]
    assert pair_of(table, ["A", "cls"], ["B", "cls"])["rho"] == 1
    assert (tmp_path / "o" / "scatter_darts.png").exists()


def test_segmentation_is_a_target(tmp_path):
    for k, score in enumerate((5, 3, 4, 1)):
        write_result(tmp_path / "a", k, "rot", score)
        write_result(tmp_path / "b", k, "seg", 2 * score, dataset="cityscapes")
    table = run(tmp_path / "o", tmp_path / "a", tmp_path / "b")["darts"]
    (pair,) = table["pairs"]
    assert (pair["x"], pair["y"]) == (["cifar10", "rot"], ["cityscapes", "seg"])
    assert pair["rho"] == 1
    assert {search["target"] for search in table["random_search"]} == {"cityscapes seg"}
    lines, labels = correlate.draw_experiments("darts", table).axes[0].get_legend_handles_labels()
    dashes = {label: line.get_linestyle() for label, line in zip(labels, lines)}
    assert dashes == {"cifar10 rot": "--", "cityscapes seg": "-"}  # across and within data sets
    assert (tmp_path / "o" / "scatter_darts.png").exists()


def test_panels_of_two_data_sets(tmp_path):
    """A target has seven predictors, in two rows of four panels, the last one empty."""
    for dataset, task in itertools.product(("animals", "vehicles"), ("cls", "rot", "col", "jig")):
        for k in range(4):
            write_result(tmp_path / dataset, k, task, k * k)
    folders = [f"{name}={tmp_path / name}" for name in ("animals", "vehicles")]
    table = run(tmp_path / "o", *folders)["darts"]
    figure = correlate.draw_scatter("darts", table, by_loss=[])
    shown = [ax for ax in figure.axes if ax.axison]
    labels = [(ax.get_ylabel(), ax.get_xlabel().removesuffix(" (DARTS)")) for ax in shown]
    pairs = [(" ".join(pair["x"]), " ".join(pair["y"])) for pair in table["pairs"]]
    assert len(figure.axes) == 16 and labels == pairs[:14]
    assert {y for _, y in labels} == {"animals cls", "vehicles cls"}


def test_lower_is_better(tmp_path):
    for k, error in enumerate((5, 3, 4, 1)):
        write_result(tmp_path / "a", k, "rot", error, higher=False)
        write_result(tmp_path / "a", k, "cls", 10 - error)
    table = run(tmp_path / "o", tmp_path / "a")["darts"]
    assert pair_of(table, ["cifar10", "rot"], ["cifar10", "cls"])["rho"] == 1


def test_constant_and_too_few(tmp_path):
    for k in range(4):
        write_result(tmp_path / "a", k, "rot", 25.0)
        write_result(tmp_path / "a", k, "cls", k)
        write_result(tmp_path / "a", k, "jig", k * k)
    table = run(tmp_path / "o", tmp_path / "a")["darts"]
    assert "cifar10 rot: all 4 architectures have 25, no ranking; left out" in table["notes"]
    assert pair_of(table, ["cifar10", "jig"], ["cifar10", "cls"])["rho"] == 1
    for k in range(2):
        write_result(tmp_path / "b", k, "rot", k)
        write_result(tmp_path / "b", k, "cls", k)
    with pytest.raises(InputError, match="2 architectures.*at least 3"):
        run(tmp_path / "o2", tmp_path / "b")
    assert not (tmp_path / "o2").exists()


# --------------------------------------------------------------------------------------------------
# the public release


def write_release(root, space="nas_bench", n=30):
    """Errors by (dataset, task, run, architecture), some of them lists of which the last counts."""
    rng = np.random.default_rng(3)
    quality, truth = rng.random(n), {}
    for dataset, runs in (("cifar10", ("1", "2", "3")), ("imagenet", ("1",))):
        for task in ("cls", "rot"):
            for run_ in runs:
                error = 30 - 10 * quality + rng.random(n) * 4
                truth.setdefault((dataset, task), []).append(100 - error)
                jobs = []
                for k in range(n):
                    cell = {
                        "normal": [["none", k]],
                        "normal_concat": [2],
                        "reduce": [["none", 0]],
                        "reduce_concat": [2],
                    }
                    value = error[k] if k % 2 else [50.0, error[k]]
                    jobs.append({"job_id": k, "net": {"genotype": cell}, "min_test_top1": value})
                path = root / space / dataset / task / run_ / "sweep_summary.json"
                path.parent.mkdir(parents=True)
                path.write_text(json.dumps({"job_summaries": jobs}))
    return {label: np.mean(runs, axis=0) for label, runs in truth.items()}


@pytest.mark.parametrize("space, name", [("nas_bench", "nasbench101"), ("darts", "darts")])
def test_release(tmp_path, space, name):
    truth = write_release(tmp_path / "summaries", space)
    table = run(tmp_path / "o", tmp_path / "summaries")[name]
    rot, target = truth["cifar10", "rot"], truth["imagenet", "cls"]
    pair = pair_of(table, ["cifar10", "rot"], ["imagenet", "cls"])
    assert pair["n"] == 30 and pair["rho"] == pytest.approx(stats.spearmanr(rot, target).statistic)
    assert pair["partial_rho"] is None
    assert (tmp_path / "o" / f"scatter_{name}.png").exists()
    lines = (tmp_path / "o" / "report.md").read_text().splitlines()
    paper = {"darts": "0.82", "nasbench101": "0.74"}[name]
    for row, text in (("cifar10 rot | imagenet cls", paper), ("imagenet rot | cifar10 cls", "-")):
        line = next(line for line in lines if row in line)
        assert line.split(" | ")[3] == text
    assert sum("| typically > 0.8 |" in line for line in lines) == 2  # rot and cls of a data set
    (search,) = [
        s
        for s in table["random_search"]
        if (s["proxy"], s["target"]) == ("cifar10 rot", "imagenet cls")
    ]
    assert [row["m"] for row in search["curve"]] == [1, 2, 4, 8, 16]
    assert search["curve"][0]["mean"] == pytest.approx(target.mean())
    assert search["curve"][0]["seconds"] is None and search["objective"] == "rot on cifar10"
    with pytest.raises(InputError, match="--score best"):
        run(tmp_path / "o", tmp_path / "summaries", "--score", "final")
    with pytest.raises(InputError, match="no --by_loss"):
        run(tmp_path / "o", tmp_path / "summaries", "--by_loss", "rot")


def test_nasbench_results_match_by_isomorphism(tmp_path):
    first = [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    a = genotypes.NASBenchCell(first, ["input", "maxpool3x3", "conv1x1-bn-relu", "output"])
    b = genotypes.NASBenchCell(first, ["input", "conv1x1-bn-relu", "maxpool3x3", "output"])
    for task, cell in (("cls", a), ("rot", b)):
        for k in range(3):
            write_result(tmp_path / "a", k, task, k)
            path = tmp_path / "a" / task / f"{k}_s1" / "result.json"
            result = json.loads(path.read_text())
            chain = [[int(j == i + 1) for j in range(k + 2)] for i in range(k + 2)]
            other = {"matrix": chain, "ops": ["input", *["maxpool3x3"] * k, "output"]}
            path.write_text(
                json.dumps(
                    {**result, "space": "nasbench101", "genotype": other if k else cell._asdict()}
                )
            )
    assert run(tmp_path / "o", tmp_path / "a")["nasbench101"]["n"] == 3


def test_needs_no_torch(tmp_path):
    for k in range(4):
        write_result(tmp_path / "a", k, "rot", k)
        write_result(tmp_path / "a", k, "cls", -k)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    done = subprocess.run(
        [sys.executable, ROOT / "correlate.py", tmp_path / "a", "--out", tmp_path / "o"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "-1.00 [-1.00, -1.00]" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "content, message",
    [({"task": "cls"}, '"dataset" is None, where str'), ([], "is [], where dict")],
)
def test_malformed(tmp_path, capsys, content, message):
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as exit_:
        cli.run(correlate.main, correlate.parse_args, [str(tmp_path)])
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and "result.json: " in err and message in err
    assert len(err.splitlines()) == 1
    for text in (str(tmp_path / "nowhere"), "a=", "a=lr=0.1"):
        with pytest.raises(InputError, match="no such folder"):
            correlate.read([text], "best")
    with pytest.raises(SystemExit):
        correlate.parse_args([""])
    assert "argument [NAME=]FOLDER" in capsys.readouterr().err


def test_a_release_without_trainings_or_their_folders(tmp_path):
    path = tmp_path / "darts" / "cifar10" / "rot" / "1" / "sweep_summary.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"job_summaries": []}')
    with pytest.raises(InputError, match="no training in the files there"):
        run(tmp_path / "o", tmp_path)
    for path in ("/a/sweep_summary.json", "/a/b/c/d/sweep_summary.json"):
        with pytest.raises(InputError, match=r"expected darts\|nas_bench/"):
            next(correlate.read_release(Path(path), "best", ()))


def test_a_name_with_dollars_is_no_mathematics(tmp_path):
    for k, task in itertools.product(range(3), ("cls", "rot")):
        write_result(tmp_path / "a", k, task, k)
    table = run(tmp_path / "o", rf"$\foo$={tmp_path / 'a'}")["darts"]
    assert table["pairs"][0]["x"] == [r"$\foo$", "rot"]


def test_a_folder_with_an_equals_sign(tmp_path):
    for k in range(3):
        write_result(tmp_path / "lr=0.1", k, "cls", k)
    for text, name in ((f"{tmp_path}/lr=0.1", "cifar10"), (f"A={tmp_path}/lr=0.1", "A")):
        assert list(correlate.read([text], "best")["darts"]) == [(name, "cls")]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("best", 1000, '"best" 1000, "final" 2 of 2 "epochs" contradict'),
        ("higher_is_better", "false", "\"higher_is_better\" is 'false', where bool is due"),
        ("best", None, '"best" is None'),
        ("epochs", [], '"best" 2, "final" 2 of 2 "epochs" contradict the 0'),
        ("epochs", [{}, {"top1": 2}], '"epochs" 0 "top1" is None'),
        ("seed", "1", "\"seed\" is '1', where int is due"),
    ],
)
def test_a_wrong_result(tmp_path, field, value, message):
    write_result(tmp_path, 1, "cls", 2)
    path = tmp_path / "cls" / "1_s1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"result.json: {re.escape(message)}"):
        correlate.read([str(tmp_path)], "best")


def test_an_architecture_that_lacks_a_seed_is_left_out(tmp_path, capsys):
    """One seed is 3 points lower and missing for half of the cells."""
    rng = np.random.default_rng(0)
    quality = 10 * rng.random(40)
    for k, q in enumerate(quality):
        write_result(tmp_path / "a", k, "cls", q)
        write_result(tmp_path / "a", k, "rot", q + 0.1 * rng.random(), 0)
        if k % 2:
            write_result(tmp_path / "a", k, "rot", q - 3, 1)
    table = run(tmp_path / "o", tmp_path / "a")["darts"]
    pair = pair_of(table, ["cifar10", "rot"], ["cifar10", "cls"])
    assert pair["n"] == 20 and pair["rho"] > 0.98  # with all 40 it is lower
    assert table["stability"]["cifar10 rot"]["seeds"] == 2
    assert "20 left out" in capsys.readouterr().out
    for k in range(3):  # each cell lacks another seed
        for seed in {0, 1, 2} - {k}:
            write_result(tmp_path / "b", k, "rot", k, seed)
            write_result(tmp_path / "b", k, "cls", k, seed)
    with pytest.raises(InputError, match="0 architectures have a finite"):
        run(tmp_path / "o2", tmp_path / "b")
