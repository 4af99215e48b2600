"""Nothing lost, nothing silently wrong: statistics, damaged checkpoints, two runs in one folder,
images in which nothing counts, odd ways to be started."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import cli
import pytest
import torch
import torch.nn as nn
from cli import InputError
from conftest import photo
from filelock import FileLock

import data
import image_files
import pretext
import runs
import sample
import search
import train
import utils

ROOT = Path(__file__).parent.parent
SMALL = ["--limit", "40", "--width", "4", "--layers", "2", "--batch_size", "10", "--device", "cpu"]
TRAIN = [*SMALL, "--arch", "darts_v2", "--task", "rot"]


def run_train(*argv):
    return train.main(train.parse_args([*TRAIN, *map(str, argv)]))


def test_precise_bn_is_that_of_the_whole_set():
    """With batches whose means lie far apart; the mean of their variances is far too low."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    x = torch.randn(8, 16, 3, 5, 5) + 3 * torch.randn(8, 1, 3, 1, 1)
    utils.precise_bn(network, iter(x))
    features = network[0](x.flatten(0, 1))
    var, mean = torch.var_mean(features, (0, 2, 3), correction=0)
    torch.testing.assert_close(network[1].running_mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network[1].running_var, var, rtol=1e-4, atol=1e-5)
    within = torch.stack([network[0](part).var((0, 2, 3)) for part in x]).mean(0)
    assert (within < 0.8 * var).any()
    # the second BN has seen the batches as the first normalises them in training
    outputs = torch.cat([network[1].train()(network[0](part)).relu() for part in x])
    var, mean = torch.var_mean(outputs, (0, 2, 3), correction=0)
    torch.testing.assert_close(network[3].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network[3].running_var, var, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Checkpoints


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A training of three epochs that was killed after the second, and its undisturbed result."""
    whole, save = run_train("--epochs", 3, "--out", tmp_path / "whole"), runs.Run.save

    def save_and_stop(self):
        save(self)
        if self.epochs_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "save", save_and_stop)
        run_train("--epochs", 3, "--out", tmp_path / "run")
    return tmp_path / "run", whole


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    "position", [0.3, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 0.6, 0.9, -30))]
)
def test_a_flipped_bit(stopped, capsys, position):
    """It is noticed, and the run goes on from the checkpoint before, or it changes nothing."""
    out, whole = stopped
    size = (out / "checkpoint.pt").stat().st_size
    flip(out / "checkpoint.pt", int(position * size) if isinstance(position, float) else position)
    capsys.readouterr()
    result = run_train("--epochs", 3, "--out", out, "--resume")
    assert result["epochs"] == whole["epochs"]
    said = capsys.readouterr().out
    assert "is damaged" in said or "resumed after epoch 2" in said
    assert position not in (0.3, 0.6) or "is damaged" in said


def test_a_kill_between_two_renames(stopped):
    out, whole = stopped
    (out / "checkpoint.pt").unlink()
    assert run_train("--epochs", 3, "--out", out, "--resume")["epochs"] == whole["epochs"]


def test_no_usable_checkpoint(stopped):
    out, _ = stopped
    for name in runs.CHECKPOINTS:
        (out / name).write_bytes((out / name).read_bytes()[:-100])
    with pytest.raises(InputError, match="no usable checkpoint .*; remove") as error:
        run_train("--epochs", 3, "--out", out, "--resume")
    assert "not as torch.save wrote it" in str(error.value) and "\n" not in str(error.value)
    torch.save({"identity": {"split": "x"}}, out / "checkpoint.old.pt")
    with pytest.raises(InputError, match='its content: "epoch" is None, where int is due'):
        run_train("--epochs", 3, "--out", out, "--resume")


def test_other_images(stopped, monkeypatch):
    out, _ = stopped
    monkeypatch.setattr(data, "split_hash", lambda *sets: "others")
    with pytest.raises(InputError, match="written for other images .*--limit, or their names"):
        run_train("--epochs", 3, "--out", out, "--resume")


@pytest.mark.parametrize(
    "line", [b'{"epoch": [1]}\n', b"\0\0\xff\n", b"[" * 20_000 + b"\n", b"3\n"]
)
def test_a_line_of_the_log_that_is_none(stopped, line):
    out, whole = stopped
    lines = (out / "log.jsonl").read_bytes().splitlines(keepends=True)
    (out / "log.jsonl").write_bytes(b"".join([*lines[:2], line, *lines[2:], b'{"epoch']))
    assert run_train("--epochs", 3, "--out", out, "--resume")["epochs"] == whole["epochs"]
    assert (out / "log.jsonl").read_bytes().startswith(b"".join(lines))


def test_another_precision_in_a_checkpoint(stopped):
    out, _ = stopped
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    state["network"] = {name: value.half() for name, value in state["network"].items()}
    torch.save(state, out / "checkpoint.pt")
    with pytest.raises(InputError, match="not the checkpoint of such a run"):
        run_train("--epochs", 3, "--out", out, "--resume")


# --------------------------------------------------------------------------------------------------
# JSON


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1}', None),
        ('{"a": 1.5, "b": [1, 2], "c": {"x": "y"}, "d": []}', None),
        ('{"a": true}', '"a" is True, where int or float is due'),
        ('{"a": NaN}', '"a" is None, where int or float'),
        ('{"a": 1e999}', '"a" is inf, where'),
        (f'{{"a": {10**400}}}', '"a" is 1000'),
        ('{"a": 1, "b": [1, "x"]}', "\"b\" 1 is 'x', where int is due"),
        ('{"a": 1, "c": {"x": {}}}', '"c" "x" is {}, where str or NoneType is due'),
        ('{"a": 1, "c": {"x": "\\ud800"}}', '"c" "x" is '),
        ("[]", "it is [], where dict is due"),
        ("[" * 20_000, "not a readable JSON file"),
        ("", "not a readable JSON file"),
    ],
)
def test_shapes_of_json(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    shape = {"a": cli.NUMBER, "b": ([int], None), "c": ({...: (str, None)}, None)}
    if message is None:
        value = cli.read_json(tmp_path / "x.json", shape)
        assert value["b"] == json.loads(text).get("b")
        return
    with pytest.raises(InputError) as error:
        cli.read_json(tmp_path / "x.json", shape)
    assert str(error.value).startswith(f"{tmp_path / 'x.json'}: ") and message in str(error.value)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


def test_a_checkpoint_of_other_shapes(tmp_path):
    argv = [*SMALL, "--task", "rot", "--epochs", "2", "--out", str(tmp_path)]
    search.main(search.parse_args([*argv[:-4], "--epochs", "1", "--out", str(tmp_path)]))
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["identity"]["epochs"] = 2
    for alphas in ({"0": torch.zeros(1, 1, 8)}, None):  # which copy_ would broadcast; none at all
        changed = {**state, "alphas": alphas}
        changed = {key: value for key, value in changed.items() if value is not None}
        torch.save(changed, path)
        with pytest.raises(InputError, match="not the checkpoint of such a run") as error:
            search.main(search.parse_args([*argv, "--resume"]))
        assert "\n" not in str(error.value)


def test_two_runs_in_one_folder(tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(InputError, match="another process is at work"),
    ):
        run_train("--epochs", 1, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    run_train("--epochs", 1, "--out", tmp_path)


def test_an_evaluation_that_fails_does_not_cost_the_epoch(tmp_path, monkeypatch):
    def fail(*args):
        raise InputError("an unreadable image")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="unreadable"):
        patch.setattr(utils, "evaluate", fail)
        run_train("--epochs", 1, "--out", tmp_path / "a")
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (0, 4)
    whole = run_train("--epochs", 1, "--precise_bn", 20, "--out", tmp_path / "b")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="unreadable"):
        patch.setattr(utils, "evaluate", fail)
        run_train("--epochs", 1, "--precise_bn", 20, "--out", tmp_path / "c")
    again = run_train("--epochs", 1, "--precise_bn", 20, "--out", tmp_path / "c", "--resume")
    assert again["epochs"] == whole["epochs"]


# --------------------------------------------------------------------------------------------------
# Masks in which nothing counts


@pytest.fixture
def voids(monkeypatch):
    """Masks of the first `count` batches without a labelled pixel."""
    prepare, batches = pretext.Segmentation.prepare, []

    def void(self, *batch, train):
        x, y = prepare(self, *batch, train=train)
        batches.append(train)
        return x, torch.full_like(y, 255) if len(batches) <= void.count else y

    void.count = 0
    monkeypatch.setattr(pretext.Segmentation, "prepare", void)
    return void


def run_seg(out, *argv):
    argv = [
        *SMALL,
        "--arch",
        "darts_v2",
        "--task",
        "seg",
        "--epochs",
        "1",
        *argv,
        "--out",
        str(out),
    ]
    return train.main(train.parse_args(argv))


def test_a_batch_in_which_nothing_counts(tmp_path, voids):
    voids.count = 1
    result = run_seg(tmp_path / "every", "--print_every", "1")
    assert result["epochs"][0]["train_loss"] > 0
    lines = (tmp_path / "every" / "log.jsonl").read_text().splitlines()
    assert "loss" not in json.loads(lines[1]) and "loss" in json.loads(lines[2])


def test_an_epoch_in_which_nothing_counts(tmp_path, voids):
    voids.count = 4
    with pytest.raises(InputError, match="epoch 1: nothing counts"):
        run_seg(tmp_path / "train")
    voids.count = 100
    with pytest.raises(InputError, match="nothing in the evaluation images counts"):
        voids.count = -100
        evaluate = utils.evaluate
        utils.evaluate = lambda *args: {}
        try:
            run_seg(tmp_path / "test")
        finally:
            utils.evaluate = evaluate


# --------------------------------------------------------------------------------------------------
# Started oddly, ended oddly


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is set"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, "srun started 4 tasks"),
    ],
)
def test_other_launchers(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        run_train("--epochs", 1)


@pytest.mark.parametrize("flag", ["--data", "--out"])
def test_an_empty_path(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    for script, argv in ((train, TRAIN), (search, SMALL)):
        with pytest.raises(SystemExit) as exit_:
            cli.run(script.main, script.parse_args, [*argv, "--dataset", "folder", flag, ""])
        assert exit_.value.code == 2 and f"argument {flag}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ranks_whose_torchrun_has_gone(monkeypatch):
    """It was killed while they imported torch: nobody answers where its store was."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(utils, "TO_JOIN", timedelta(seconds=1))
    monkeypatch.setattr(utils, "progress", "at the start")  # not where another test was
    with pytest.raises(InputError, match="waits for the other ranks at the start in vain"):
        utils.join_ranks("gloo")


PARENT_DIES = '''
import os, subprocess, sys, time
child = """import sys, time
sys.path.insert(0, '.')
import utils
utils.end_with_parent()
time.sleep(60)"""
print(subprocess.Popen([sys.executable, "-c", child]).pid, flush=True)
time.sleep(8)
os.kill(os.getpid(), 9)
'''


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_a_rank_ends_with_its_parent():
    process = subprocess.Popen([sys.executable, "-c", PARENT_DIES], cwd=ROOT, stdout=-1, text=True)
    pid = int(process.stdout.readline())
    process.wait()
    assert Path(f"/proc/{pid}").exists()
    deadline = time.time() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.time() < deadline, "it lives on"
        time.sleep(0.2)


WORKERS = """
import multiprocessing, sys, data, cli, image_files
def main(args):
    train, _ = data.load("imagenet", sys.argv[1], workers=2)
    view = image_files.View(None, "area", 16)
    for _ in data.batches(train, view, 2, "cpu", seed=0):
        {what}
    print("not reached", file=sys.stderr)
if __name__ == "__main__":
    {start}
"""


@pytest.mark.parametrize(
    "start",
    ["cli.run(main, lambda argv: None)", pytest.param("main(None)", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "what, code, wanted",
    [
        ("1 / 0", 1, "ZeroDivisionError"),
        ("raise cli.InputError('bad')", 2, "error: bad"),
        ("[worker.kill() for worker in multiprocessing.active_children()]", 2, "killed"),
    ],
)
def test_an_error_ends_the_workers(imagenet, tmp_path, what, code, wanted, start):
    script = tmp_path / "script.py"
    script.write_text(WORKERS.format(what=what, start=start))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(imagenet)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    by_script = start.startswith("cli")
    assert done.returncode == (code if by_script else 1), done.stderr
    wanted = wanted if by_script else wanted.replace("error: bad", "InputError: bad")
    assert wanted in done.stderr and "not reached" not in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1 or not by_script)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX")
def test_a_worker_that_hangs(imagenet, monkeypatch):
    monkeypatch.setattr(image_files, "PATIENCE", 3)
    train_set, _ = data.load("imagenet", imagenet, workers=2)
    batches = data.batches(train_set, image_files.View(None, "area", 16), 2, "cpu", seed=0)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(InputError, match="--workers: no batch for 3 s"):
        list(batches)


def test_no_more_workers_than_batches(imagenet):
    train_set, _ = data.load("imagenet", imagenet, workers=900)
    for _ in data.batches(train_set, image_files.View(None, "area", 16), 10, "cpu", seed=0):
        assert len(multiprocessing.active_children()) <= 2


def without_shared_memory(*command, **options):
    """Runs a command where /dev/shm has one MB."""
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


@pytest.mark.slow
def test_no_room_in_shared_memory(tmp_path):
    try:
        mountable = without_shared_memory("true").returncode == 0
    except OSError:
        mountable = False
    if not mountable:
        pytest.skip("needs the right to mount")
    for part in ("train", "val"):
        for k in range(16):
            path = tmp_path / part / "ab"[k % 2] / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(260, 240, k).save(path)
    argv = ["search.py", "--dataset", "imagenet", "--data", tmp_path, "--batch_size", 8]
    argv += ["--width", 4, "--layers", 1, "--workers", 2, "--out", tmp_path / "out"]
    done = without_shared_memory(sys.executable, *argv, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no room for a batch of 1.1 MB in /dev/shm" in done.stderr
    assert "--shm-size" in done.stderr


FROZEN = """
import datetime, os, sys, time
sys.path.insert(0, ".")
import cli, runs, train, utils
utils.PATIENCE = datetime.timedelta(seconds=5)
after_step = runs.Run.after_step
def frozen(self):
    if os.environ["RANK"] == "1" and self.steps_done == 2:
        time.sleep(12)
        os._exit(1)
    after_step(self)
runs.Run.after_step = frozen
cli.run(train.main, train.parse_args)
"""


@pytest.mark.slow
def test_a_rank_that_hangs(tmp_path):
    script = tmp_path / "frozen.py"
    script.write_text(FROZEN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv = [*command, script, *TRAIN, "--epochs", 1, "--out", tmp_path / "out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, argv)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert "error (rank 0): waits for the other ranks after epoch 0, step 3" in done.stderr


def test_a_second_sigterm_ends_a_wait(tmp_path, monkeypatch):
    def wait_for_a_batch(self):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes one on that its ranks got, too
        self.sigterm -= 6
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it goes on")

    monkeypatch.setattr(runs.Run, "after_step", wait_for_a_batch)
    with pytest.raises(SystemExit) as exit_:
        run_train("--epochs", 1, "--out", tmp_path)
    assert exit_.value.code == runs.STOPPED


@pytest.mark.parametrize(
    "script, flag, value",
    [
        *[(train, "--lr", value) for value in ("1e39", "nan", "inf", "-1", "x", "")],
        *[(train, "--epochs", value) for value in ("0", "1e20", "1" + "0" * 20)],
        (train, "--cutout", "1" + "0" * 20),
        *[(train, "--width", value) for value in ("3", "0", "900000000")],
        (search, "--alpha_lr", "1e39"),
        (search, "--seed", str(2**32)),
        (sample, "--params", "9 5"),
        (sample, "--shard", "2/2"),
    ],
)
def test_numbers_out_of_bounds(capsys, script, flag, value):
    with pytest.raises(SystemExit) as exit_:
        script.parse_args([flag, *value.split(" ")])
    assert exit_.value.code == 2 and f"argument {flag}" in capsys.readouterr().err


def test_a_network_that_fits_no_memory(tmp_path, capsys):
    """What the allocator says, in one line."""
    argv = [*SMALL, "--arch", "darts_v2", "--width", "65536", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_:
        cli.run(train.main, train.parse_args, argv)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and "memory" in error and error.count("\n") == 1


def test_a_bug_that_speaks_of_memory_keeps_its_traceback():
    def view(args):
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last).view(-1)

    def fail(args):
        raise RuntimeError("unsupported memory format option")

    for bug in (view, fail):
        with pytest.raises(RuntimeError):
            cli.run(bug, lambda argv: None)


@pytest.mark.slow
def test_a_filter_that_no_cell_passes():
    with pytest.raises(InputError, match="widen --params"):
        sample.draw("darts", 1, 0, params=(0, 1))
