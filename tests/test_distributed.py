"""Several processes give what one gives; they stop, go on and restart together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from cli import InputError
from filelock import FileLock

import genotypes
import pretext
import runs
import train

ROOT = Path(__file__).parent.parent


def torchrun(processes, *argv):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", *map(str, argv)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def finished(process, code=0):
    _, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return err


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """Of 2 and 3 processes, once for all workers of pytest-xdist."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    root = tmp_path_factory.getbasetemp().parent / f"ranks-{run}"
    root.mkdir(exist_ok=True)
    results = {}
    with FileLock(root / "lock"):
        for n in (2, 3):
            out = root / str(n)
            if not (out / "found.json").exists():
                out.mkdir()
                finished(torchrun(n, "tests/ranks.py", out))
            results[n] = {**read_json(out / "found.json"), "out": out}
    return results


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_evaluation_counts_each_image_once(found):
    one = ranks.evaluations()
    for n in (2, 3):
        assert found[n]["world"] == n
        results = found[n]["evaluations"]
        assert list(results) == list(pretext.TASKS)
        for task, result in results.items():
            assert result["loss"] == pytest.approx(one[task]["loss"], rel=1e-5)
            assert result | {"loss": one[task]["loss"]} == one[task], (n, task)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2])
def test_two_processes_search_as_one(found, tmp_path, K):
    one, two = ranks.exact_search(tmp_path / "one", K), found[2]["exact"][str(K)]
    # 32 images of each half in batches of 16
    assert len(one["losses"]) == 2 and len(one["gradients"]) == 2
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-9)
    assert two["genotype"] == json.loads(json.dumps(one["genotype"]))
    gradients, reduced = (torch.tensor(run["gradients"]) for run in (one, two))
    assert gradients.shape == (2, 2 * 14 * 8 + 2 * 14 * (K - 1))
    assert gradients.abs().max() > 1e-5 and gradients[:, -28:].abs().max() > 1e-7
    torch.testing.assert_close(reduced, gradients, rtol=1e-5, atol=1e-12)
    if K == 1:
        return
    without = found[2]["without"]
    alone = torch.tensor(without["gradients"])
    with pytest.raises(AssertionError):  # what the official code does
        torch.testing.assert_close(alone, gradients, rtol=1e-5, atol=1e-12)
    assert without["error"] == "the ranks hold different alphas"
    assert one["error"] is two["error"] is None


@pytest.mark.slow
def test_all_tasks_on_two_processes(found):
    for task in pretext.TASKS:
        out = found[2]["out"]
        assert genotypes.load_arch(str(out / f"search_{task}" / "genotype.json"))
        result = read_json(out / f"train_{task}" / "result.json")
        (logged,) = result["epochs"]
        assert result["world_size"] == 2 and result["final"] == logged[result["metric"]]
        assert logged["loss"] == pytest.approx(logged["train_loss"], rel=0.5)
        checkpoint = torch.load(out / f"train_{task}" / "checkpoint.pt", weights_only=True)
        first, second = (rng["cpu"] for rng in checkpoint["rng"])
        assert not torch.equal(first, second)  # different augmentation
        assert not any(key.startswith("module.") for key in checkpoint["network"])


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["network"]


def assert_same_weights(a, b):
    for key, value in weights(a).items():
        torch.testing.assert_close(weights(b)[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_all(found):
    out = found[2]["out"]
    assert found[2]["stopped"] == {"code": runs.STOPPED, "calls": 7}
    whole, stopped = (read_json(out / name / "result.json") for name in ("whole", "stopped"))
    assert stopped["final"] == whole["final"] and len(whole["epochs"]) == 6
    assert_same_weights(out / "whole", out / "stopped")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all(found):
    errors = found[2]["nan"]
    assert len(errors) == 2
    assert all("the loss is not finite by epoch 1, step 1" in error for error in errors)


@pytest.mark.slow
def test_another_number_of_processes(found, tmp_path, capsys):
    out = found[2]["out"]
    shutil.copytree(out / "stopped", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    argv = [*ranks.STOPPED, "--resume", "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="2 processes, this run has 1"):
        train.main(train.parse_args([*argv, "--deterministic"]))
    torch.use_deterministic_algorithms(False)
    train.main(train.parse_args(argv))
    assert "not exactly" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_rank(found, tmp_path):
    """torchrun starts the ranks again; they go on after the last whole epoch and end with the
    undisturbed result."""
    undisturbed, out = found[2]["out"] / "whole", tmp_path / "killed"
    process = torchrun(2, "--max_restarts=1", "train.py", *ranks.STOPPED, "--out", out)
    deadline = time.time() + 120
    while not (out / "checkpoint.pt").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    victim = next(
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if f"--out\0{out}\0" in read(f"/proc/{pid}/cmdline")
        and "\nRANK=1\n" in read(f"/proc/{pid}/environ").replace("\0", "\n")
    )
    os.kill(victim, signal.SIGKILL)
    finished(process)
    whole, killed = (read_json(folder / "result.json") for folder in (undisturbed, out))
    assert killed["epochs"] == whole["epochs"]
    assert killed["args"]["resume"] and not whole["args"]["resume"]
    for key, value in weights(undisturbed).items():
        assert torch.equal(value, weights(out)[key]), key


@pytest.mark.slow
def test_a_killed_torchrun_leaves_no_rank(tmp_path):
    """Not even a single one, without which its folder would stay locked."""
    process = torchrun(1, "train.py", *ranks.STOPPED, "--epochs", "1000", "--out", tmp_path)
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)  # until the rank has closed stderr, too
    assert process.returncode == -signal.SIGKILL
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


@pytest.mark.slow
def test_sigterm_to_torchrun(imagenet, tmp_path):
    """Which passes it to the ranks and to the workers that decode for them."""
    argv = ["search.py", *ranks.SMALL, "--dataset", "imagenet", "--data", imagenet]
    argv += "--task rot --size 40 --alpha_start 0 --epochs 4 --batch_size 4".split()
    argv += "--print_every 1 --workers 1".split()
    finished(torchrun(2, *argv, "--out", tmp_path / "whole"))
    log = tmp_path / "stopped" / "log.jsonl"
    process = torchrun(2, *argv, "--out", log.parent)
    while not log.exists() or '"epoch": 2, "step": 2' not in log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    err = finished(process, code=1)  # that of torchrun
    assert "stopped by SIGTERM" in err and err.count("--resume goes on") == 1
    finished(torchrun(2, *argv, "--out", log.parent, "--resume"))
    folders = (tmp_path / "whole", log.parent)
    whole, stopped = (read_json(folder / "genotype.json") for folder in folders)
    assert stopped["genotype"] == whole["genotype"]
    for a, b in zip(whole["meta"]["history"], stopped["meta"]["history"], strict=True):
        assert a["w_loss"] == pytest.approx(b["w_loss"], rel=1e-6)


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # the process is gone, or not ours
        return ""


@pytest.mark.slow
def test_errors_of_torchrun_runs(tmp_path):
    argv = ["search.py", *ranks.SMALL, "--limit", "40", "--out", tmp_path / "s"]
    err = finished(torchrun(2, *argv, "--batch_size", "9"), code=1)
    assert "--batch_size 9" in err
    assert 'Traceback (most recent call last):\n  File "search.py' not in err
    assert not (tmp_path / "s").exists()
