"""Cells of NAS-Bench-101, the samplers, the sweep."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats

import cli
import data
import genotypes
import sample
import train
import utils
from cli import InputError
from genotypes import NASBENCH_OPS, NASBenchCell, load_archs, nasbench_hash, parse_nasbench, prune
from model_eval import build_network, vertex_channels
from pretext import PooledHead

TEN_CLASSES = partial(PooledHead, num_classes=10)
ROOT = Path(__file__).parent.parent
UNIQUE = {2: 1, 3: 6, 4: 84, 5: 2441, 6: 62010}  # cells by vertices, as published
OPTIONS = [
    "--width",
    "4",
    "--layers",
    "3",
    "--limit",
    "40",
    "--size",
    "8",
    "--batch_size",
    "10",
    "--device",
    "cpu",
]


def cells_of(V):
    """Every labelled cell of V vertices, as (edges, ops)."""
    pairs = list(itertools.combinations(range(V), 2))
    for bits in range(1 << len(pairs)):
        edges = [pair for k, pair in enumerate(pairs) if bits >> k & 1]
        matrix = [[int((i, j) in edges) for j in range(V)] for i in range(V)]
        pruned = prune(NASBenchCell(matrix, ["input", *["maxpool3x3"] * (V - 2), "output"]))
        if len(edges) <= 9 and pruned and len(pruned.ops) == V:
            for labels in itertools.product(NASBENCH_OPS, repeat=V - 2):
                yield edges, ["input", *labels, "output"]


def to_cell(edges, ops):
    return NASBenchCell(
        [[int((i, j) in edges) for j in range(len(ops))] for i in range(len(ops))], ops
    )


@pytest.mark.parametrize("V", [2, 3, 4, 5, pytest.param(6, marks=pytest.mark.slow)])
def test_unique_cells_by_vertices(V):
    """By the published hash, and by the sampler's weights: a class of k labelled cells adds k times 1 / k."""
    hashes, weight = set(), 0.0
    for edges, ops in cells_of(V):
        hashes.add(nasbench_hash(to_cell(edges, ops)))
        weight += 1 / len(sample.labelings(edges, ops)) if V < 6 else 0
    assert len(hashes) == UNIQUE[V]
    assert V == 6 or weight == pytest.approx(UNIQUE[V], abs=1e-6)


def small_cells(monkeypatch, accept_all=False):
    """Hashes of 9100 cells of at most 4 vertices."""
    monkeypatch.setattr(sample, "MAX_VERTICES", 4)
    if accept_all:
        monkeypatch.setattr(sample, "labelings", lambda edges, ops: {0})
    rng = random.Random(0)
    return Counter(nasbench_hash(sample.draw_nasbench(rng)) for _ in range(9100))


def test_sampler_is_uniform(monkeypatch):
    counts = small_cells(monkeypatch)
    assert len(counts) == 91 and stats.chisquare(list(counts.values())).pvalue > 0.01


def test_a_sampler_that_counts_isomorphic_cells_twice_is_not(monkeypatch):
    counts = small_cells(monkeypatch, accept_all=True)
    assert len(counts) == 91 and stats.chisquare(list(counts.values())).pvalue < 1e-6


def test_draws_are_distinct_valid_and_repeat():
    cells = sample.draw("nasbench101", 60, seed=3)
    assert (
        list(cells)[:2] == ["00000", "00001"]
        and len({nasbench_hash(c) for c in cells.values()}) == 60
    )
    assert all(parse_nasbench(genotypes.to_entry(c), i) == c for i, c in cells.items())
    assert sample.draw("nasbench101", 60, seed=3) == cells != sample.draw("nasbench101", 60, seed=4)
    start = time.process_time()
    sample.draw("nasbench101", 100, seed=5)
    assert time.process_time() - start < 100 * 0.05


def test_darts_costs_add_up_and_limits_hold():
    rng = random.Random(1)
    genotype = sample.draw_darts(rng)

    def build():
        return build_network(genotype, 16, 20, "cifar", TEN_CLASSES)

    with torch.device("meta"):
        params = utils.count_params(build())
    assert sample.darts_cost(genotype) == (params, utils.count_macs(build, (1, 3, 32, 32)))
    for arch in sample.draw("darts", 10, seed=0).values():
        params, macs = sample.darts_cost(arch)
        assert 684_616 <= params <= 1_026_924 and 100.6e6 <= macs <= 150.9e6
    some = [sample.draw_darts(rng) for _ in range(400)]
    ops = Counter(op for g in some for op, _ in g.normal + g.reduce)
    assert len(ops) == 8 and stats.chisquare(list(ops.values())).pvalue > 1e-3
    assert any(g.normal[0] == g.normal[1] for g in some)
    with pytest.raises(InputError, match="--params"):
        sample.draw("darts", 1, seed=0, params=(1, 2))


def test_pruning_and_rule():
    def cell(*edges, ops=("maxpool3x3", "conv1x1-bn-relu"), V=4):
        return {
            "matrix": [[int((i, j) in edges) for j in range(V)] for i in range(V)],
            "ops": ["input", *ops, "output"],
        }

    pruned = parse_nasbench(cell((0, 1), (1, 3), (0, 2)), "x")  # 2 leads nowhere
    assert pruned == NASBenchCell(
        [[0, 1, 0], [0, 0, 1], [0, 0, 0]], ["input", "maxpool3x3", "output"]
    )
    full = [(i, j) for i, j in itertools.combinations(range(5), 2)]
    for entry, message in (
        (cell((0, 1), (2, 3)), "no path"),
        (cell((1, 0), (0, 3)), "upper triangular"),
        (cell((0, 3), ops=("maxpool3x3", "conv5x5")), "conv5x5"),
        (cell((0, 3), ops=("maxpool3x3",)), "4 ops"),
        (cell(*full, ops=["maxpool3x3"] * 3, V=5), "5 vertices and 10 edges"),
        (dict(cell((0, 3)), matrix=[[0, 1], [0]]), "square"),
        (dict(cell((0, 3)), matrix=[[0, 2], [0, 0]]), "zeros and ones"),
        ({"matrix": 1, "ops": []}, "lists"),
    ):
        with pytest.raises(InputError, match=message):
            parse_nasbench(entry, "x")


def test_channels_and_the_cell_that_broke_others():
    fan = to_cell(
        [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 4)],
        ["input", *["conv1x1-bn-relu"] * 3, "output"],
    )
    assert vertex_channels(fan, 8, 8) == [8, 3, 3, 2, 8]
    with pytest.raises(InputError, match="--width: 2"):
        vertex_channels(fan, 2, 2)
    direct = to_cell(
        [(0, 1), (1, 2), (0, 2)], ["input", "conv3x3-bn-relu", "output"]
    )  # an add onto a ReLU's output
    alone = to_cell([(0, 1)], ["input", "output"])
    for cell, stem, size in (
        (fan, "cifar", 12),
        (direct, "cifar", 8),
        (direct, "imagenet", 64),
        (alone, "cifar", 8),
    ):
        network = build_network(cell, 6, 3, stem, TEN_CLASSES)
        network(torch.randn(2, 3, size, size)).sum().backward()
        assert all(p.grad is not None for p in network.parameters())
    for layers, auxiliary, message in ((4, 0, "--layers 4"), (3, 10, "--auxiliary")):
        with pytest.raises(InputError, match=message):
            build_network(direct, 6, layers, "cifar", TEN_CLASSES, auxiliary_classes=auxiliary)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unnas_darts_500.json", "unnas_nasbench101_500.json"])
def test_paper_lists_train(shared_data, name):
    archs = load_archs(shared_data / name)
    assert len(archs) == 500
    x = torch.randn(2, 3, 8, 8)
    for arch in archs.values():
        network = build_network(arch, 8, 3, "cifar", TEN_CLASSES)
        loss = network(x).logsumexp(1).sum()
        loss.backward()
        assert loss.isfinite() and network.head.classifier.weight.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# the sweep


def sweep(out, *argv, archs=None):
    draw = ["--archs", str(archs)] if archs else ["--space", "nasbench101", "--n", "3"]
    sample.main(
        sample.parse_args([*draw, *OPTIONS, "--epochs", "2", "--out", str(out), *map(str, argv)])
    )


def scores(out):
    results = {}
    for path in out.rglob("result.json"):
        result = json.loads(path.read_text())
        results[str(path.relative_to(out))] = [
            result[key] for key in ("arch", "task", "seed", "epochs", "genotype")
        ]
    return results


def test_sweep_trains_everything_once(tmp_path, capsys, monkeypatch):
    sweep(tmp_path, "--tasks", "cls", "rot", "--seeds", 1, 2)
    out = capsys.readouterr().out
    assert "12 done, 0 failed, 0 left of 12" in out
    found = scores(tmp_path)
    assert (
        len(found) == 12
        and {v[2] for v in found.values()} == {1, 2}
        and not list(tmp_path.rglob("checkpoint.pt"))
    )
    monkeypatch.setattr(train, "main", lambda *args: pytest.fail("trained again"))
    sweep(tmp_path, "--tasks", "cls", "rot", "--seeds", 1, 2)
    with pytest.raises(InputError, match="epochs = 2, this run has 3"):
        sweep(tmp_path, "--tasks", "cls", "--epochs", 3)
    with pytest.raises(InputError, match="other architectures"):
        sweep(tmp_path, "--draw_seed", 1)


def test_data_is_loaded_once(tmp_path, monkeypatch):
    calls, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *args: calls.append(args) or load(*args))
    sweep(tmp_path, "--tasks", "cls", "rot", "--epochs", 1)
    assert len(calls) == 1 and len(scores(tmp_path)) == 6


def test_shards_share_the_work(tmp_path):
    for shard in ("0/2", "1/2"):
        sweep(tmp_path, "--tasks", "cls", "--shard", shard, "--epochs", 1)
        assert len(scores(tmp_path)) == {"0/2": 2, "1/2": 3}[shard]


def test_a_device_that_is_not_there_ends_the_sweep(tmp_path):
    with pytest.raises(InputError, match="--device cuda:77"):
        sweep(tmp_path / "s", "--device", "cuda:77")
    assert not (tmp_path / "s").exists()


def test_a_failure_is_recorded_and_the_rest_is_done(tmp_path, capsys):
    wide = to_cell(
        [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)], ["input", *["maxpool3x3"] * 3, "output"]
    )
    plain = to_cell([(0, 1)], ["input", "output"])
    archs = tmp_path / "list.json"
    archs.write_text(
        json.dumps(
            [{"id": i, **genotypes.to_entry(c)} for i, c in (("wide", wide), ("plain", plain))]
        )
    )
    narrow = ["--tasks", "cls", "--width", 2, "--epochs", 1]
    sweep(tmp_path / "s", *narrow, archs=archs)
    out = capsys.readouterr().out
    assert "1 done, 1 failed, 0 left of 2" in out and "--retry_failed" in out
    failed = json.loads((tmp_path / "s" / "cls" / "wide_s1" / "failed.json").read_text())
    assert "2 channels are too few" in failed["error"]
    sample.main(sample.parse_args(["--status", str(tmp_path / "s")]))
    out = capsys.readouterr().out
    assert "1 done, 1 failed" in out and "too few" in out
    before = (tmp_path / "s" / "cls" / "wide_s1" / "failed.json").stat().st_mtime_ns
    sweep(tmp_path / "s", *narrow, archs=archs)
    assert (tmp_path / "s" / "cls" / "wide_s1" / "failed.json").stat().st_mtime_ns == before
    sweep(tmp_path / "s", *narrow, "--retry_failed", archs=archs)
    assert (tmp_path / "s" / "cls" / "wide_s1" / "failed.json").stat().st_mtime_ns > before


def command(out, *argv):
    argv = [
        "--space",
        "nasbench101",
        "-n",
        "3",
        "--tasks",
        "cls",
        "rot",
        *OPTIONS,
        "--epochs",
        "2",
        "--out",
        out,
        *argv,
    ]
    return [str(ROOT / "sample.py"), *map(str, argv)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_sweep_and_two_processes(tmp_path):
    """SIGKILL at a random moment, then two processes together: the results of an undisturbed sweep, no job done twice."""
    subprocess.run([sys.executable, *command(tmp_path / "whole")], env=ENVIRONMENT, check=True)
    process = subprocess.Popen(
        [sys.executable, *command(tmp_path / "killed")], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while not list((tmp_path / "killed").rglob("log.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.Random().uniform(0, 3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    both = [
        subprocess.Popen(
            [sys.executable, *command(tmp_path / "killed")],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    lines = [line for p in both for line in p.communicate()[0].splitlines() if " seed 1: " in line]
    jobs = [line.split(":")[0] for line in lines]
    assert [p.returncode for p in both] == [0, 0] and len(jobs) == len(set(jobs))
    assert (
        scores(tmp_path / "killed") == scores(tmp_path / "whole")
        and len(scores(tmp_path / "whole")) == 6
    )


@pytest.mark.slow
def test_ranks_of_torchrun_share_a_counter(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, *command(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    jobs = [line.split(":")[0] for line in done.stdout.splitlines() if " seed 1: " in line]
    assert len(jobs) == len(set(jobs)) == 6 == len(scores(tmp_path))


def test_status_needs_no_torch(tmp_path):
    (tmp_path / "archs.json").write_text(
        json.dumps([{"id": "a", **genotypes.to_entry(to_cell([(0, 1)], ["input", "output"]))}])
    )
    (tmp_path / "sweep.json").write_text(
        json.dumps({"settings": {}, "tasks": ["cls"], "seeds": [1, 2]})
    )
    show = f"sample.main(sample.parse_args(['--status', {str(tmp_path)!r}]))"
    code = f"import sys; sys.modules['torch'] = None; import sample; {show}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "0 done, 0 failed, 2 left of 2" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--shard", "2/2"], "--shard"),
        (["--tasks", "jigsaw"], "jigsaw"),
        (["--n", "0"], "--n"),
        (["--archs", "nowhere.json"], "nowhere.json"),
        (["--width", "5"], "--width"),
        (["--dataset", "folder", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.run(sample.main, sample.parse_args, ["--space", "nasbench101", "--n", "1", *argv])
    assert exit_.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
