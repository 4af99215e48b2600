"""run_all.sh: every profile's commands, and what a second start does after the end,
a failure, an interruption."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_study import write_small_study

import correlate
import genotypes
import report
import sample
import search
import train

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
SETTINGS = {"PROFILE", "OUT", "DATA", "DATASET", "NPROC", "DRY"}
SETTINGS |= {"CIFAR10", "IMAGENET", "IMAGENET22K", "CITYSCAPES"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in SETTINGS}
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
    if os.name == "nt" or not shutil.which("bash"):
        pytest.skip("run_all.sh needs bash")
    environment = {**ENVIRONMENT, "PATH": f"{path}:{os.environ['PATH']}", **environment}
    return subprocess.Popen(
        ["bash", script, *argv],
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        # a shell's background jobs, the tests perhaps among them, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


# --------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("processes", ["1", "8"])
def test_the_scripts_accept_every_command(tmp_path, profile, processes):
    code, out, err = finished(
        study(tmp_path, profile, "--workers", "3", DRY="1", NPROC=processes, DATA="/my data")
    )
    assert code == 0 and not err and not list(tmp_path.iterdir())
    titles, commands = out.splitlines()[::2], [shlex.split(line) for line in out.splitlines()[1::2]]
    assert all(title.startswith("# ") for title in titles) and len(set(titles)) == len(titles)
    outs, tasks, searches = [], {}, {}
    for title, command in zip(titles, commands, strict=True):
        start = ["torchrun", "--standalone", "--nproc_per_node=8"]
        parallel = command[: len(start)] == start
        path, *argv = command[len(start) if parallel else 1 :]
        script = Path(path).name
        assert Path(path) == ROOT / script and (parallel or command[0] == "python")
        assert parallel == (
            processes == "8"
            and script in ("search.py", "train.py", "sample.py")
            and "--draw_only" not in argv
        )
        args = PARSERS[script].parse_args(argv)
        if script == "sample.py":
            args.dataset = train.parse_args(["--arch", "darts_v2", *args.train_argv]).dataset
        if script in ("search.py", "train.py"):
            assert (
                args.data == (None if args.dataset == "shapes" else "/my data")
                and args.workers == 3
                and args.resume
            )
            tasks.setdefault((script, args.dataset), set()).add(args.task)
        if script == "search.py":
            assert args.alpha_start < args.epochs
            key = args.dataset, args.task
            searches.setdefault(key, []).append((args.partial, args.seed))
        if script != "report.py":  # where the stage is, its output is
            assert args.out == f"runs/{profile}/{title.removeprefix('# ')}"
            outs.append(args.out)
    assert len(set(outs)) == len(outs)
    for (dataset, task), found in searches.items():
        K = 2 if dataset == "imagenet" else 4
        assert sorted(found) == [(1, 0), (1, 1), (K, 0), (K, 1)], (dataset, task)
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
    assert "correlate.py folder=" in out  # the paper's numbers are not about these images
    _, out, _ = finished(study(tmp_path, "--limit", "9", DRY="1", PROFILE="imagenet"))
    assert "--dataset imagenet --data data/imagenet --limit 9" in out
    code, _, err = finished(study(tmp_path, "cifar100"))
    assert code == 2 and "cifar100" in err and "smoke" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_from_another_folder_and_with_blanks(tmp_path):
    """What the user names is below the user's folder, what is run beside the script."""
    home = tmp_path / "my code"
    home.mkdir()
    shutil.copy(ROOT / "run_all.sh", home)
    script, roots = Path("../my code/run_all.sh"), {"OUT": "my runs", "DATA": "my data"}
    (tmp_path / "here").mkdir()
    process = study(tmp_path / "here", "cifar10_small", script=script, DRY="1", **roots)
    code, out, err = finished(process)
    commands = [shlex.split(line) for line in out.splitlines()[1::2]]
    assert code == 0 and not err and len(commands) == 59
    for _, path, *argv in commands:
        assert (tmp_path / "here" / path).resolve().parent == home.resolve()
        if Path(path).name == "report.py":
            assert argv == ["my runs"]
        else:
            assert argv[argv.index("--out") + 1].startswith("my runs/")
        if "--data" in argv:
            assert argv[argv.index("--data") + 1] == "my data"


# --------------------------------------------------------------------------------------------------
# Stages

FAKE = """#!/bin/bash
trap "exit 130" INT
echo "$@" >> calls
echo "said by $1"
while [ $# -gt 1 ]; do [ "$1" != --out ] || mkdir -p "$2"; shift; done
matches() { tail -n 1 calls | grep -q -- "$(cat $1 2>/dev/null || echo never)"; }
if matches fail; then echo "too bad"; exit 3; fi
if matches hang; then sleep 60; fi
"""


@pytest.fixture
def fake(tmp_path):
    """A folder with a `python` that only notes how it is called; what matches the pattern in the
    file `fail` fails, what matches the one in `hang` hangs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(FAKE)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def calls(fake):
    """How `python` was called since the last time, without the folder of the scripts."""
    if not (fake / "calls").exists():
        return []
    lines = (fake / "calls").read_text().splitlines()
    (fake / "calls").unlink()
    return [line.removeprefix(f"{ROOT}/") for line in lines]


def test_a_failing_stage_stops_and_the_next_start_goes_on(fake):
    (fake / "fail").write_text("darts_v2.*--seed 0")
    code, out, err = finished(study(fake, path=fake / "bin"))
    before = calls(fake)
    name, log = "train_cls_darts_v2_s0", "runs/smoke/train_cls_darts_v2_s0/stage.log"
    assert code == 3 and out.endswith(f"{before[-1]}\nsaid by {ROOT}/train.py\ntoo bad\n")
    assert err == f"{name} failed, exit code 3; log: {log}; command: python {ROOT}/{before[-1]}\n"
    assert before[-1].startswith("train.py --arch darts_v2 --task cls --dataset shapes")
    assert before[-1].endswith("--resume") and f"# {name}\n" in out
    assert (fake / log).read_text() == f"said by {ROOT}/train.py\ntoo bad\n"

    (fake / "fail").unlink()
    assert finished(study(fake, path=fake / "bin"))[0] == 0
    after = calls(fake)
    assert len(before) == 34 and after[0] == before[-1] and len(before) + len(after) == 40 + 1
    said = f"said by {ROOT}/train.py\n"
    assert (fake / log).read_text() == f"{said}too bad\n{said}"

    code, out, _ = finished(study(fake, path=fake / "bin"))
    assert code == 0 and calls(fake) == [] and out.count("finished before") == 40


def test_failed_trainings_of_a_sweep_do_not_stop_the_study(fake):
    status = '[ "$2" != --status ] || { echo "x: 5 done, 1 failed, $LEFT left of 9"; exit; }\n'
    python = FAKE.replace("exit 3", "exit 1").replace('echo "said', f'{status}echo "said')
    (fake / "bin" / "python").write_text(python)
    (fake / "fail").write_text("sample.py.*nasbench101")
    code, _, err = finished(study(fake, path=fake / "bin", LEFT="3"))
    assert code == 1 and "sweep_shapes_nasbench101 failed, exit code 1" in err
    assert calls(fake)[-1] == "sample.py --status runs/smoke/sweep_shapes_nasbench101"
    code, out, err = finished(study(fake, path=fake / "bin", LEFT="0"))
    assert code == 0 and not err and "1 failed, 0 left" in out
    assert calls(fake)[-1].startswith("report.py")


def test_what_is_removed_or_changed_runs_again(fake):
    finished(study(fake, path=fake / "bin"))
    every = calls(fake)
    assert len(every) == 40 and [line.split()[0] for line in every[-2:]] == [
        "correlate.py",
        "report.py",
    ]
    shutil.rmtree(fake / "runs/smoke/train_cls_darts_v2_s0")
    finished(study(fake, path=fake / "bin"))
    assert calls(fake) == [every[33], *every[-2:]] and "darts_v2" in every[33]
    assert finished(study(fake, "smoke", "--amp", "bf16", path=fake / "bin"))[0] == 0
    assert len(calls(fake)) == 40 - 1  # --amp does not change how random cells are drawn

    for stage in ("correlate.py", "report.py"):
        shutil.rmtree(fake / "runs/smoke/train_cls_darts_v2_s0")
        (fake / "fail").write_text(stage)
        code, _, err = finished(study(fake, "smoke", "--amp", "bf16", path=fake / "bin"))
        assert code == 3 and stage in err and calls(fake)[-1].startswith(stage)


def test_ctrl_c(fake):
    (fake / "hang").write_text("darts_v2.*--seed 0")
    process = study(fake, path=fake / "bin")
    while not (fake / "calls").exists() or len((fake / "calls").read_text().splitlines()) < 34:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert finished(process)[0] != 0
    before = calls(fake)
    (fake / "hang").unlink()
    assert finished(study(fake, path=fake / "bin"))[0] == 0
    after = calls(fake)
    assert after[0] == before[-1] and len(before) + len(after) == 40 + 1


@pytest.mark.slow
def test_an_interrupted_study_ends_with_the_same_report(tmp_path):
    """A search, two trainings and the report for real; the second training gets Ctrl-C."""
    script = write_small_study(tmp_path, epochs=12)
    out = tmp_path / "runs" / "smoke"
    first, second = out / "train_cls_shapes_rot_k1_s0_s0", out / "train_cls_darts_v2_s0"

    process = study(tmp_path, script=script)
    while not (second / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    code, said, err = finished(process)
    assert code == 130 and "interrupted" in said and "train_cls_darts_v2_s0" in err
    assert not (second / "result.json").exists() and not (out / "report.md").exists()
    assert {"cell.png", "alphas.png"} <= {
        path.name for path in (out / "search_shapes_rot_k1_s0").iterdir()
    }
    assert "step 2/2" in said and " left" in said and "epoch 1/12 done" in said

    before = (first / "result.json").stat().st_mtime_ns
    code, said, err = finished(study(tmp_path, script=script))
    assert code == 0, err
    assert said.count("finished before") == 2 and "resumed after epoch" in said
    assert (first / "result.json").stat().st_mtime_ns == before
    rows = json.loads((out / "report.json").read_text())
    assert {row["group"] for row in rows} == {"without labels", "published"}
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    assert finished(study(tmp_path, script=script))[0] == 0
    again = json.loads((out / "report.json").read_text())
    assert [dict(row, seconds=0) for row in again] == [dict(row, seconds=0) for row in rows]
