"""run_all.sh: every profile's commands, what fails, what is interrupted, a second start."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import correlate
import genotypes
import report
import sample
import search
import train
import utils

ROOT = Path(__file__).parent.parent
PROFILES = [
    "smoke",
    "cifar10",
    "cifar10_small",
    "imagenet",
    "cityscapes",
    "cityscapes_small",
    "paper",
]
ENVIRONMENT = {
    k: v
    for k, v in os.environ.items()
    if k not in ("PROFILE", "OUT", "DATA", "DATASET", "NPROC", "DRY")
}
PARSERS = {
    "search.py": search,
    "train.py": train,
    "sample.py": sample,
    "correlate.py": correlate,
    "report.py": report,
}


def study(
    folder, *argv, path=Path(sys.executable).parent, script=ROOT / "run_all.sh", **environment
):
    environment = {**ENVIRONMENT, "PATH": f"{path}:{os.environ['PATH']}", **environment}
    return subprocess.Popen(
        ["bash", script, *argv],
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("processes", ["1", "8"])
def test_the_scripts_accept_every_command(tmp_path, profile, processes):
    code, out, err = finished(
        study(tmp_path, profile, "--workers", "3", DRY="1", NPROC=processes, DATA="/my data")
    )
    assert code == 0 and not err and not list(tmp_path.iterdir())
    titles, commands = out.splitlines()[::2], [shlex.split(line) for line in out.splitlines()[1::2]]
    assert [title.split()[1] for title in titles] == [
        f"[{k}/{len(titles)}]" for k in range(1, len(titles) + 1)
    ]
    outs, tasks = [], {}
    for command in commands:
        start = ["torchrun", "--standalone", "--nproc_per_node=8"]
        parallel = command[: len(start)] == start
        script, *argv = command[len(start) if parallel else 1 :]
        assert parallel == (
            processes == "8"
            and script in ("search.py", "train.py", "sample.py")
            and "--draw_only" not in argv
        )
        args = PARSERS[script].parse_args(argv)
        if script == "sample.py":
            args.dataset = train.parse_args(["--arch", "", *args.train_argv]).dataset
        if script in ("search.py", "train.py"):
            assert (
                args.data == (None if args.dataset == "shapes" else "/my data")
                and args.workers == 3
                and args.resume
            )
            tasks.setdefault((script, args.dataset), set()).add(args.task)
        outs += [args.out] if script != "report.py" else []
    assert len(set(outs)) == len(outs)
    for (script, dataset), found in tasks.items():
        labels = "seg" if dataset == "cityscapes" else "cls"
        assert found == ({labels} if script == "train.py" else {"rot", "col", "jig", labels})


def test_the_paper_has_a_folder_for_each_data_set(tmp_path):
    roots = {"CIFAR10": "/a", "IMAGENET": "/b", "IMAGENET22K": "/c", "CITYSCAPES": "/d"}
    _, out, _ = finished(study(tmp_path, "paper", DRY="1", **roots))
    found = set(re.findall(r"--dataset (\S+) --data (\S+)", out))
    assert found == {(name.lower(), root) for name, root in roots.items()}
    assert out.count("-n 500") == 4 and out.count("--seeds 1 2 3 --dataset cifar10") == 2
    assert all(
        f"train_{task}_{cell}_s2" in out
        for task in ("cls", "seg")
        for cell in genotypes.CELLS
        if "unnas" in cell
    )


def test_a_folder_as_cifar10_and_an_unknown_profile(tmp_path):
    _, out, _ = finished(study(tmp_path, "cifar10_small", DRY="1", DATASET="folder", DATA="/a"))
    assert "--dataset folder --data /a" in out and "--download" not in out
    _, out, _ = finished(study(tmp_path, "--limit", "9", DRY="1", PROFILE="imagenet"))
    assert "--dataset imagenet --data data/imagenet --limit 9" in out
    code, _, err = finished(study(tmp_path, "cifar100"))
    assert code == 2 and "cifar100" in err and "smoke" in err and len(err.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Stages

FAKE = """#!/bin/bash
echo "$@" >> calls
echo "said by $1"
while [ $# -gt 1 ]; do [ "$1" != --out ] || mkdir -p "$2"; shift; done
if tail -n 1 calls | grep -q -- "$(cat fail 2>/dev/null || echo never)"; then echo "too bad"; exit 3; fi
if tail -n 1 calls | grep -q -- "$(cat hang 2>/dev/null || echo never)"; then sleep 60; fi
"""


@pytest.fixture
def fake(tmp_path):
    """A folder with a `python` that only notes how it is called; what matches `fail` fails, what matches `hang` hangs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(FAKE)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def calls(fake):
    lines = (fake / "calls").read_text().splitlines()
    (fake / "calls").unlink()
    return lines


def test_a_failing_stage_stops_and_the_next_start_goes_on(fake):
    (fake / "fail").write_text("darts_v2.*--seed 1")
    code, out, err = finished(study(fake, path=fake / "bin"))
    before = calls(fake)
    command = "python train.py --arch darts_v2 --task cls --dataset shapes"
    assert (
        code == 3
        and "train_cls_darts_v2_s1, failed with exit code 3" in err
        and "    too bad" in err
    )
    assert re.search(rf"^    {command} .* --seed 1 --out \S+ --resume$", err, re.M)
    log = "runs/smoke/train_cls_darts_v2_s1.log"
    assert (
        f"[15/23] train_cls_darts_v2_s1, log: {log}" in out
        and (fake / log).read_text() == "said by train.py\ntoo bad\n"
    )

    (fake / "fail").unlink()
    assert finished(study(fake, path=fake / "bin"))[0] == 0
    after = calls(fake)
    assert len(before) == 15 and after[0] == before[-1] and len(before) + len(after) == 23 + 1

    assert finished(study(fake, path=fake / "bin"))[0] == 0
    assert [line.split()[0] for line in calls(fake)] == ["correlate.py", "report.py"]

    (fake / "runs/smoke/train_cls_darts_v2_s0").rmdir()  # what is removed is done again
    finished(study(fake, path=fake / "bin"))
    assert calls(fake)[0] == before[13]
    code, _, _ = finished(
        study(fake, "smoke", "--amp", "bf16", path=fake / "bin")
    )  # and other settings are not done yet
    assert len(calls(fake)) == 23 - 1


def test_ctrl_c(fake):
    (fake / "hang").write_text("darts_v2.*--seed 1")
    process = study(fake, path=fake / "bin")
    while not (fake / "calls").exists() or len((fake / "calls").read_text().splitlines()) < 15:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert finished(process)[0] != 0
    before = calls(fake)
    (fake / "hang").unlink()
    assert finished(study(fake, path=fake / "bin"))[0] == 0
    after = calls(fake)
    assert after[0] == before[-1] and len(before) + len(after) == 23 + 1


SMALL = """smoke)
    search_on=shapes search="--limit 40 --size 8 --width 4 --layers 3 --batch_size 10 --epochs 1"
    train_on=shapes train="--limit 40 --size 8 --width 4 --layers 3 --batch_size 10 --epochs 12" seeds=0
    random_cells=0 ;;
"""


@pytest.mark.slow
def test_an_interrupted_study_ends_with_the_same_report(tmp_path):
    """A search, two trainings and the report for real; the second training gets Ctrl-C."""
    for name in ROOT.glob("*.py"):
        (tmp_path / name.name).symlink_to(name)
    text = (
        (ROOT / "run_all.sh")
        .read_text()
        .replace("for task in rot col jig $labels", "for task in rot")
    )
    text = text.replace("run random python sample.py", ": run random")
    script = tmp_path / "small.sh"
    script.write_text(re.sub(r"smoke\)\n.*?;;\n", SMALL, text, count=1, flags=re.S))
    out = tmp_path / "runs" / "smoke"
    first, second = out / "train_cls_shapes_rot_s0", out / "train_cls_darts_v2_s0"

    process = study(tmp_path, script=script)
    while not (second / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    code, said, err = finished(process)
    assert code == 130 and "interrupted" in said and "train_cls_darts_v2_s0" in err
    assert not (second / "result.json").exists() and not (out / "report.md").exists()
    assert {"cell.png", "alphas.png"} <= {
        path.name for path in (out / "search_shapes_rot").iterdir()
    }
    assert "step 2/2" in said and " left" in said and "epoch 1/12 done" in said

    before = (first / "result.json").stat().st_mtime_ns
    code, said, err = finished(study(tmp_path, script=script))
    assert code == 0, err
    assert said.count("done before") == 2 and "resumed after epoch" in said
    assert (first / "result.json").stat().st_mtime_ns == before
    rows = json.loads((out / "report.json").read_text())
    assert {row["group"] for row in rows} == {"without labels", "published"}
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    assert finished(study(tmp_path, script=script))[0] == 0
    again = json.loads((out / "report.json").read_text())
    assert [dict(row, seconds=0) for row in again] == [dict(row, seconds=0) for row in rows]


def test_tensorboard_has_the_numbers_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = utils.Log(tmp_path, {}, 0, 0)
    log.write(epoch=1, step=5, loss=9.0)
    for epoch in (1, 2):
        log.write(epoch=epoch, loss=3.0 - epoch, entropy=[0.5, 0.25], genotype={})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert events.Scalars("entropy1")[0].value == 0.25
