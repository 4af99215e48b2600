"""Nothing lost, nothing silently wrong: statistics, damaged checkpoints, two runs in one folder,
images in which nothing counts, odd ways to be started."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from filelock import FileLock

import cli
import data
import pretext
import runs
import search
import train
import utils
from cli import InputError

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
import sys, data, cli, image_files
def main(args):
    train, _ = data.load("imagenet", sys.argv[1], workers=2)
    view = image_files.View(None, "area", 16)
    for _ in data.batches(train, view, 2, "cpu", seed=0):
        {what}
if __name__ == "__main__":
    {start}
"""


@pytest.mark.parametrize(
    "start",
    ["cli.run(main, lambda argv: None)", pytest.param("main(None)", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("what, code", [("1 / 0", 1), ("raise cli.InputError('bad')", 2)])
def test_an_error_ends_the_workers(imagenet, tmp_path, what, code, start):
    script = tmp_path / "script.py"
    script.write_text(WORKERS.format(what=what, start=start))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, str(script), str(imagenet)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    by_script = start.startswith("cli")
    assert done.returncode == (code if by_script else 1), done.stderr
    wanted = "ZeroDivisionError" if code == 1 else "error: bad" if by_script else "InputError: bad"
    assert wanted in done.stderr
