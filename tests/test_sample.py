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

import cli
import pytest
import torch
from cli import InputError
from filelock import FileLock
from scipy import stats

import data
import genotypes
import sample
import train
import utils
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
    """By the published hash, and by the sampler's weights: k isomorphic cells add k times 1 / k."""
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

    assert sample.darts_cost(genotype) == utils.count(build, (1, 3, 32, 32))
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
        ({"matrix": 1, "ops": []}, "where list is due"),
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


# --------------------------------------------------------------------------------------------------
# The sweep


def sweep(out, *argv, archs=None):
    draw = ["--archs", str(archs)] if archs else ["--space", "nasbench101", "--n", "3"]
    argv = [*draw, *OPTIONS, "--epochs", "2", "--out", str(out), *map(str, argv)]
    sample.main(sample.parse_args(argv))


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
    with monkeypatch.context() as patch:
        patch.setattr(train, "main", lambda *args, **kwargs: {"seconds": 1})
        sweep(tmp_path, "--tasks", "cls", "--seeds", 3)
    sample.main(sample.parse_args(["--status", str(tmp_path)]))
    # rot with seed 3 was not asked for
    assert "12 done, 0 failed, 3 left of 15" in capsys.readouterr().out
    monkeypatch.setattr(train, "main", lambda *args, **kwargs: pytest.fail("trained again"))
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


@pytest.fixture
def archs(tmp_path):
    """A list of two cells, of which the first, with three branches, fails at width 2."""
    edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)]
    wide = to_cell(edges, ["input", *["maxpool3x3"] * 3, "output"])
    cells = {"wide": wide, "plain": to_cell([(0, 1)], ["input", "output"])}
    cli.write_json(
        tmp_path / "list.json", [{"id": i, **genotypes.to_entry(c)} for i, c in cells.items()]
    )
    return tmp_path / "list.json"


NARROW = ["--tasks", "cls", "--width", 2, "--epochs", 1]


def test_settings_that_no_training_can_have_end_the_sweep(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda args: sweep(tmp_path, "--tasks", "cls", "--layers", 4), lambda argv: None)
    assert exit_.value.code == 2 and "--layers 4" in capsys.readouterr().err
    assert not list(tmp_path.rglob("failed.json"))


def test_a_lost_gpu_is_no_failure_of_a_training(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(train, "main", lost)
    with pytest.raises(torch.AcceleratorError):
        sweep(tmp_path, "--tasks", "cls", "--epochs", 1)
    assert not list(tmp_path.rglob("failed.json"))


def test_two_ids_of_one_architecture(tmp_path):
    ops = ["input", "conv1x1-bn-relu", "conv3x3-bn-relu", "output"]
    edges = [(0, 1), (0, 2), (1, 3), (2, 3)]
    cells = to_cell(edges, ops), to_cell(edges, [ops[0], ops[2], ops[1], ops[3]])
    entries = [{"id": str(k), **genotypes.to_entry(cell)} for k, cell in enumerate(cells)]
    cli.write_json(tmp_path / "list.json", entries)
    with pytest.raises(InputError, match="list.json: two of its ids are one architecture"):
        sweep(tmp_path / "s", *NARROW, archs=tmp_path / "list.json")


def test_an_empty_file_is_no_result(tmp_path):
    sweep(tmp_path, "--tasks", "cls", "--epochs", 1)
    path = next(tmp_path.rglob("result.json"))
    path.write_text("")
    sweep(tmp_path, "--tasks", "cls", "--epochs", 1)
    assert len(scores(tmp_path)) == 3 and path.stat().st_size


def test_a_failure_is_recorded_and_the_rest_is_done(tmp_path, archs, capsys):
    out, failed = tmp_path / "s", tmp_path / "s" / "cls" / "wide_s1" / "failed.json"
    with pytest.raises(SystemExit, match="1 trainings failed.*failed.json.*--retry_failed") as end:
        sweep(out, *NARROW, archs=archs)
    assert str(failed) in end.value.code and "\n" not in end.value.code  # so Python exits with 1
    assert "1 done, 1 failed, 0 left of 2" in capsys.readouterr().out
    assert "2 channels are too few" in json.loads(failed.read_text())["error"]
    sample.main(sample.parse_args(["--status", str(out)]))
    said = capsys.readouterr().out
    assert "1 done, 1 failed" in said and "too few" in said

    before = failed.stat().st_mtime_ns
    with pytest.raises(SystemExit):  # still
        sweep(out, *NARROW, archs=archs)
    assert failed.stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        sweep(out, *NARROW, "--retry_failed", archs=archs)
    assert failed.stat().st_mtime_ns > before
    with pytest.raises(InputError, match="width = 2, this run has 8"):
        sweep(out, *NARROW, "--width", 8, archs=archs)


def test_what_another_process_trains_is_left_to_it(tmp_path, archs, capsys):
    out = tmp_path / "s"
    (out / "cls" / "wide_s1").mkdir(parents=True)
    with FileLock(out / "cls" / "wide_s1" / "lock"):
        sweep(out, *NARROW, archs=archs)
    assert "1 done, 0 failed, 1 left of 2" in capsys.readouterr().out
    assert [path.parent.name for path in out.rglob("log.jsonl")] == ["plain_s1"]


def test_a_failure_of_another_process_is_not_retried_at_once(tmp_path, archs, monkeypatch):
    """What fails while this process trains something else has been tried again already."""
    out = tmp_path / "s"
    with pytest.raises(SystemExit):
        sweep(out, *NARROW, "--seeds", 1, 2, archs=archs)
    (out / "cls" / "plain_s1" / "result.json").unlink()
    trained, later = [], out / "cls" / "wide_s2" / "failed.json"

    def fake(settings, load, distributed):
        trained.append(Path(settings.out).name)
        os.utime(later)  # by another process
        return {"seconds": 1}

    monkeypatch.setattr(train, "main", fake)
    with pytest.raises(SystemExit):
        sweep(out, *NARROW, "--seeds", 1, 2, "--retry_failed", archs=archs)
    assert trained == ["wide_s1", "plain_s1"] and later.exists()


def test_ranks_train_alone_and_the_environment_stays(tmp_path, monkeypatch):
    """As a rank of torchrun whose other ranks never come."""
    ranks = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    before, watched = dict(os.environ), []
    monkeypatch.setattr(utils, "end_with_parent", lambda: watched.append(True))
    sweep(tmp_path, "--tasks", "cls", "--epochs", 1)
    changed = {name for name, _ in os.environ.items() ^ before.items()}
    assert changed <= {"TORCHINDUCTOR_CACHE_DIR"}  # torch's own
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # it ends a sweep between trainings
    assert len(scores(tmp_path)) == 3 and watched == [True]
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {result["world_size"] for result in results} == {1}


def command(out, *argv):
    options = ["--space", "nasbench101", "-n", "3", "--tasks", "cls", "rot", *OPTIONS]
    argv = [*options, "--epochs", "2", "--out", out, *argv]
    return [str(ROOT / "sample.py"), *map(str, argv)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def trained(text):
    """The trainings that a process says it did, in the order of its lines."""
    return [line.split(":")[0] for line in text.splitlines() if " seed 1: " in line]


@pytest.mark.slow
def test_killed_sweep_and_two_processes(tmp_path):
    """Killed at a random moment, then two processes together: the results of an undisturbed sweep,
    nothing trained twice."""
    subprocess.run([sys.executable, *command(tmp_path / "whole")], env=ENVIRONMENT, check=True)
    killed = [sys.executable, *command(tmp_path / "killed")]
    process = subprocess.Popen(killed, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "killed").rglob("log.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.Random().uniform(0, 3))
    process.kill()
    process.wait()
    pipe = dict(stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen(killed, env=ENVIRONMENT, **pipe) for _ in range(2)]
    found = [name for process in both for name in trained(process.communicate()[0])]
    assert [p.returncode for p in both] == [0, 0] and len(found) == len(set(found))
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    assert len(scores(tmp_path / "whole")) == 6


def torchrun(*argv):
    argv = [*TORCHRUN, *argv]
    return subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_work(tmp_path):
    done = torchrun(*command(tmp_path))
    assert done.returncode == 0, done.stderr
    found = trained(done.stdout)
    assert len(found) == len(set(found)) == 6 == len(scores(tmp_path))


@pytest.mark.slow
def test_a_failure_in_one_rank_lets_the_others_finish(tmp_path, archs):
    """torchrun ends all ranks as soon as one ends with an error."""
    options = ["--archs", archs, *OPTIONS, *NARROW, "--epochs", 40, "--out", tmp_path / "s"]
    argv = [str(ROOT / "sample.py"), *map(str, options)]
    for more in ([], ["--retry_failed"]):
        done = torchrun(*argv, *more)
        assert done.returncode == 1 and "1 trainings failed" in done.stderr, done.stderr
        assert len(scores(tmp_path / "s")) == 1
        assert trained(done.stdout).count("cls wide seed 1") == 1


def test_hours_left_without_the_largest_pause(tmp_path):
    folders = {tmp_path / str(k): None for k in range(100)}
    for k in range(21):
        (tmp_path / str(k)).mkdir()
        path = tmp_path / str(k) / "result.json"
        path.write_text("{}")
        when = 1e9 + 180 * k + 36_000 * (k == 20)
        os.utime(path, (when, when))
        if k == 3:  # too few to tell
            assert sample.status(folders) == "4 done, 0 failed, 96 left of 100"
    assert sample.status(folders).startswith("21 done, 0 failed, 79 left of 100; 4.0 hours left")


@pytest.mark.parametrize("argv", ["--status", "--help"])
def test_status_and_help_need_no_torch(tmp_path, argv):
    cell = to_cell([(0, 1)], ["input", "output"])
    cli.write_json(tmp_path / "archs.json", [{"id": "a", **genotypes.to_entry(cell)}])
    cli.write_json(
        tmp_path / "sweep.json",
        {"settings": {}, "trainings": [{"task": "cls", "seed": s} for s in (1, 2)]},
    )
    hidden = "sys.modules.update(torch=None, filelock=None)"
    show = f"sample.main(sample.parse_args([{argv!r}, {str(tmp_path)!r}]))"
    code = f"import sys; {hidden}; import sample; {show}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said = {"--status": "0 done, 0 failed, 2 left of 2", "--help": "--retry_failed"}[argv]
    assert done.returncode == 0 and said in done.stdout, done.stderr


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
