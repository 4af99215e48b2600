"""A few faults of each kind, and what a fault may do to what is written."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import cli
import pytest
import torch

import runs
import sample
import search
import train
import visualize

ROOT = Path(__file__).parent.parent
SMALL = ["--limit", "40", "--width", "4", "--layers", "1", "--batch_size", "10", "--device", "cpu"]
TRAIN = [*SMALL, "--arch", "darts_v2", "--task", "rot", "--epochs", "1"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kind, count", [("kills", 3), ("disk", 3), ("images", 3)])
def test_faults(kind, count):
    command = [sys.executable, ROOT / "tests" / "faults.py", "--kinds", kind, "--seed", "1"]
    done = subprocess.run([*command, "--count", str(count)], capture_output=True, text=True)
    assert done.returncode == 0 and f"| {kind} |" in done.stdout, done.stdout + done.stderr


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def end_of(capsys, main, parse_args, argv):
    """(exit code, standard error) of a script."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(main, parse_args, argv)
    return exit_.value.code, capsys.readouterr().err


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        argv = [*TRAIN, "--out", str(tmp_path)]
        code, err = end_of(capsys, train.main, train.parse_args, argv)
    name = tmp_path / "log.jsonl"
    assert code == 2 and err.endswith(f"error: {name}: No space left on device\n")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_sweep_ends_on_a_full_disk(tmp_path, capsys, monkeypatch):
    """It is no failure of the training, which would not be tried again."""
    argv = [*SMALL, "-n", "1", "--space", "nasbench101", "--width", "8", "--layers", "3"]
    argv += ["--tasks", "rot", "--epochs", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "write_log", full_disk)
        with pytest.raises(OSError):
            cli.run(sample.main, sample.parse_args, argv)
    assert not list(tmp_path.rglob("failed.json"))
    cli.run(sample.main, sample.parse_args, argv)
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_partial_files_are_removed_at_the_next_start(tmp_path):
    (tmp_path / "checkpoint.pt.0a1b2c3d.tmp").write_text("half")
    (tmp_path / "notes.tmp").write_text("somebody's own")
    train.main(train.parse_args([*TRAIN, "--out", str(tmp_path), "--resume"]))
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["notes.tmp"]


def test_a_picture_is_whole_or_not_there(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.pdf"
    monkeypatch.setattr(os, "fsync", full_disk)
    argv = ["darts_v2", "--out", str(out)]
    code, err = end_of(capsys, visualize.main, visualize.parse_args, argv)
    assert code == 2 and f"error: {out}: No space" in err and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "script, flag, unbuffered",
    [("genotypes.py", "darts_v2", "1"), ("genotypes.py", "darts_v2", ""), ("sample.py", "-h", "")],
)
def test_nowhere_to_print_to(script, flag, unbuffered):
    with open("/dev/full", "w") as full:
        command = [sys.executable, ROOT / script, flag]
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=-1, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.endswith("error: stdout: No space left on device\n")


def test_a_path_that_json_cannot_name(capsys):
    code, err = end_of(capsys, train.main, train.parse_args, [*TRAIN, "--data", "caf\udce9"])
    assert code == 2 and "argument --data: invalid path value: 'caf\\udce9'" in err


def test_numbers_that_options_may_have_are_read(tmp_path):
    cli.write_json(tmp_path / "a.json", [1e20, 2**62])
    assert cli.read_json(tmp_path / "a.json", [cli.NUMBER]) == [1e20, 2**62]
    cli.write_json(tmp_path / "a.json", [1e300])
    with pytest.raises(cli.InputError, match="0 is 1e.300"):
        cli.read_json(tmp_path / "a.json", [cli.NUMBER])


def test_a_disk_without_locks(capsys):
    def main(_):
        raise OSError(errno.ENOLCK, "No locks available")  # as filelock does

    code, err = end_of(capsys, main, print, "")
    assert code == 2 and "has no file locks (No locks available)" in err and "Trace" not in err


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "genotypes.py"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_notebook(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    cli.run(print, lambda argv: "hello")
    assert sys.stdout.getvalue() == "hello\n"


def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    monkeypatch.setattr(cli, "write_text", lambda *args: None)
    argv = [*TRAIN, "--out", str(tmp_path)]
    code, err = end_of(capsys, train.main, train.parse_args, argv)
    assert code == 130 and err.endswith("the same command with --resume goes on\n")
    assert not list(tmp_path.glob("*.tmp")) and torch.is_grad_enabled()


def test_sigterm_advises_what_the_script_has(tmp_path, capsys, monkeypatch):
    class Stopped:
        out, finish, args = tmp_path, lambda self: None, search.parse_args([])

    for resume, advice in ((True, "command goes on"), (False, "with --resume goes on")):
        Stopped.args.resume = resume
        with pytest.raises(SystemExit):
            runs.Run.stop(Stopped())
        assert advice in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes")
def test_names_that_are_not_text(tmp_path):
    from conftest import photo

    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(30):
        photo(20, 20, k).save(os.fsencode(photos) + b"/%d\xff.png" % k, format="PNG")
    for name in (b"/bad\xff.png", b"/worse\xfe.png"):
        Path(os.fsdecode(os.fsencode(photos) + name)).write_text("no image")
    argv = [*SMALL, "--dataset", "folder", "--data", str(photos), "--size", "16"]
    argv += ["--space", "nasbench101", "-n", "1", "--layers", "3", "--width", "8"]
    argv += ["--tasks", "rot", "--epochs", "1", "--batch_size", "4", "--out", str(tmp_path / "o")]
    done = subprocess.run([sys.executable, ROOT / "sample.py", *argv], capture_output=True)
    # of the two some are evaluated and end it by name; else they are left out by name
    assert b"Traceback" not in done.stderr and rb"\udcff.png" in done.stdout + done.stderr
