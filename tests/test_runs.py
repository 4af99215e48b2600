"""search.py and train.py as commands: what they write, how they stop, go on and refuse."""

import argparse
import ast
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import cli
import numpy as np
import pytest
import torch
from PIL import Image

import data
import genotypes
import model_search
import pretext
import runs
import search
import train

ROOT = Path(__file__).parent.parent
SMALL = "--limit 40 --width 4 --layers 2 --batch_size 10 --device cpu"
BOTH = pytest.mark.parametrize("script", [search, train], ids=["search", "train"])
OPTIONS = {search: f"{SMALL} --alpha_lr 0.01", train: f"{SMALL} --arch darts_v2"}


def words(*argv):
    """("--epochs 1 --out", path) as a list of words; paths stay whole."""
    split = [arg.split() if isinstance(arg, str) else [str(arg)] for arg in argv]
    return [word for part in split for word in part]


def run(script, *argv):
    return script.main(script.parse_args(words(OPTIONS[script], *argv)))


def run_search(*argv):
    return run(search, *argv)


def run_train(*argv):
    return run(train, *argv)


def read_json(path):
    return json.loads(path.read_text())


def read_log(out):
    """The lines of log.jsonl without what a clock or the place of the run puts there."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("seconds", "images_per_second", "args"):
            line.pop(key, None)
    return lines


def read_args(out):
    return json.loads((out / "log.jsonl").read_text().splitlines()[0])["args"]


def read_checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_run(a, b):
    x, y = read_checkpoint(a), read_checkpoint(b)

    def compare(u, v, path):
        assert type(u) is type(v), path
        if isinstance(u, dict):
            assert u.keys() == v.keys(), path
            for key in u:
                if key != "seconds":
                    compare(u[key], v[key], f"{path}.{key}")
        elif isinstance(u, list):
            assert len(u) == len(v), path
            for i, pair in enumerate(zip(u, v)):
                compare(*pair, f"{path}.{i}")
        else:
            assert torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v, path

    compare(x, y, "")
    assert read_log(a) == read_log(b)


# --------------------------------------------------------------------------------------------------
# search


@pytest.mark.parametrize("task", list(pretext.TASKS))
def test_search_and_train_the_found_cell(tmp_path, capsys, task):
    found = tmp_path / "s" / "genotype.json"
    genotype = run_search(f"--task {task} --epochs 1 --out", found.parent)
    out = capsys.readouterr().out
    assert "alpha entropy" in out and "images/s" in out and " left" in out
    assert genotypes.load_arch(str(found)) == genotype
    meta = read_json(found)["meta"]
    assert meta["task"] == task and meta["stopped"] is None
    (epoch,) = meta["history"]
    assert model_search.derive(torch.tensor(epoch["alphas"])) == genotype and "betas" not in epoch
    lines = read_log(tmp_path / "s")
    assert lines[0]["versions"]["torch"] == torch.__version__
    assert re.fullmatch("[0-9a-f]{12}", lines[0]["split"])
    metric = pretext.TASKS[task].metric
    assert {"w_loss", f"w_{metric}", "alpha_loss", "entropy", "skips", "convs"} <= lines[-1].keys()
    result = run_train("--arch", found, f"--task {task} --epochs 1 --out", tmp_path / "t")
    saved = read_json(tmp_path / "t" / "result.json")
    assert saved == json.loads(json.dumps(result))
    assert (saved["arch"], saved["task"], saved["metric"]) == ("s", task, metric)
    assert saved["higher_is_better"] and saved["params"] > 0 and saved["macs"] > 0
    logged = read_log(tmp_path / "t")[-1]  # of the only epoch
    assert saved["final"] == saved["best"] == logged[metric] == saved["epochs"][0][metric]
    assert not list(tmp_path.rglob("*.tmp"))


def test_default_folder_follows_the_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_search("--task rot --epochs 1 --seed 3")
    result = run_train("--arch runs/search_shapes_rot_s3/genotype.json --epochs 1")
    assert result["arch"] == "shapes_rot_s3"
    assert Path("runs/train_shapes_rot_s3_shapes_cls_s0/result.json").is_file()


@BOTH
def test_settings_are_printed_once_at_the_start(tmp_path, capsys, script):
    run(script, "--epochs 1 --lr 0.05 --out", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (settings,) = (line for line in lines if line.startswith("settings: "))
    given = f"{OPTIONS[script]} --lr 0.05".removeprefix("--").split(" --")
    defaults = {search: ["grad_clip 5.0", "size 16"], train: ["label_smoothing 0.0", "size 32"]}
    assert {*given, *defaults[script], "epochs 1"} <= {*settings[10:].split(", ")}
    assert "None" not in settings
    first_step = next(k for k, line in enumerate(lines) if line.startswith("epoch 1/1  step"))
    assert lines.index(settings) < first_step


def test_main_of_train_needs_few_names_of_others():
    """What a reader has to look up: attributes of the modules utils and runs."""
    tree = ast.parse((ROOT / "train.py").read_text())
    (main,) = (node for node in tree.body if getattr(node, "name", "") == "main")
    attributes = [node for node in ast.walk(main) if isinstance(node, ast.Attribute)]
    names = {ast.unparse(node) for node in attributes}
    used = {name for name in names if re.fullmatch(r"(utils|runs)\.\w+", name)}
    assert {"runs.Run", "utils.evaluate"} <= used and len(used) <= 15, sorted(used)


@pytest.fixture
def watched(monkeypatch):
    """What a search's steps do: `batches` lists (indices) in the order in which the task prepares
    them, `steps` whether each optimiser step changed weights and alphas."""
    seen = {"batches": [], "steps": []}
    supernets, alphas = [], []
    make_supernet, make_alphas = model_search.Supernet, model_search.init_alphas

    def supernet(*args, **kwargs):
        supernets.append(make_supernet(*args, **kwargs))
        return supernets[-1]

    def init_alphas(*args):
        alphas.append(make_alphas(*args))
        return alphas[-1]

    monkeypatch.setattr(model_search, "Supernet", supernet)
    monkeypatch.setattr(model_search, "init_alphas", init_alphas)
    for optimizer in (torch.optim.SGD, torch.optim.Adam):

        def step(self, *args, take_step=optimizer.step, name=optimizer.__name__, **kwargs):
            weights = [p.clone() for p in supernets[-1].parameters()]
            before = alphas[-1].clone()
            take_step(self, *args, **kwargs)
            same = [torch.equal(p, q) for p, q in zip(weights, supernets[-1].parameters())]
            seen["steps"].append((name, not all(same), not torch.equal(before, alphas[-1])))

        monkeypatch.setattr(optimizer, "step", step)
    prepare = pretext.Rotation.prepare

    def watch(self, images, labels, index, train):
        if train:
            seen["batches"].append(index.tolist())
        return prepare(self, images, labels, index, train)

    monkeypatch.setattr(pretext.Rotation, "prepare", watch)
    return seen


def test_steps_change_weights_or_alphas_and_images_are_used_once(tmp_path, watched):
    run_search("--task rot --epochs 2 --alpha_start 1 --limit 47 --out", tmp_path / "s")
    # 47 images: halves of 23, 2 steps an epoch; in the first epoch the weights alone
    weights, alphas = ("SGD", True, False), ("Adam", False, True)
    assert watched["steps"] == [weights] * 2 + [alphas, weights] * 2
    w_half, alpha_half = (set(half.tolist()) for half in data.split_in_half(47, 0))
    batches = watched["batches"]
    w_batches, alpha_batches = batches[:2] + batches[3::2], batches[2::2]
    assert all(set(batch) <= w_half for batch in w_batches) and len(w_batches) == 4
    assert all(set(batch) <= alpha_half for batch in alpha_batches) and len(alpha_batches) == 2
    uses = [sum(batch.count(i) for batch in alpha_batches) for i in alpha_half]
    assert max(uses) <= math.ceil(2 * 10 / 23) and sum(uses) == 20


def test_frozen_alphas_are_announced(tmp_path, capsys):
    run_search("--task cls --epochs 2 --alpha_start 1 --out", tmp_path)
    assert "alphas frozen until epoch 2" in capsys.readouterr().out


def test_collapse_is_announced(tmp_path, capsys, monkeypatch):
    def skips(device):
        alphas = torch.zeros(2, 14, 8)
        alphas[0, :, 3] = 5
        return alphas.requires_grad_()

    monkeypatch.setattr(model_search, "init_alphas", skips)
    run_search("--task cls --epochs 1 --out", tmp_path)
    out = capsys.readouterr().out
    assert "skips 8, convolutions 0" in out and "warning: the normal cell has no convolution" in out


def history_of(*ops, betas=()):
    """Epochs whose normal cell has that op on all edges."""
    epochs = []
    for op in ops:
        alphas = torch.zeros(2, 14, 8)
        alphas[0, :, genotypes.PRIMITIVES.index(op)] = 1
        epochs.append({"alphas": alphas.tolist()})
    for epoch, values in zip(epochs, betas):
        epoch["betas"] = values.tolist()
    return epochs


def test_when_a_search_stops():
    def why(history, *argv):
        return search.why_stop(search.parse_args(words(*argv)), history)

    skip, conv, pool = "skip_connect", "sep_conv_3x3", "max_pool_3x3"
    assert why(history_of(conv, skip, skip)) is None  # off
    assert why(history_of(conv, skip), "--stop_skips 8") == "8 skip connections in the normal cell"
    assert why(history_of(conv, skip), "--stop_skips 8 --max_skips 1")
    assert why(history_of(skip, conv), "--stop_skips 1") is None  # the last epoch counts
    assert why(history_of(skip, skip), "--stop_skips 1 --alpha_start 2") is None  # all frozen
    assert why([], "--stop_skips 1 --stop_stable 1") is None
    stable = "--stop_stable 2"
    assert why(history_of(pool, conv, conv, conv), stable) == "the same cells for 2 epochs"
    assert why(history_of(conv, conv), stable) is None
    assert why(history_of(conv, conv, pool), stable) is None
    assert why(history_of(conv, conv, conv), stable, "--alpha_start 1") is None
    betas = torch.zeros(3, 2, 14)
    betas[1, 0, 4] = 1  # 2 -> 3 becomes the first edge of node 3
    assert why(history_of(conv, conv, conv, betas=betas), stable) is None
    betas[:, 0, 2:5] = torch.tensor([[3, 2, 0], [2, 3, 0], [3, 2, 0]])  # the first of two, in turns
    assert why(history_of(conv, conv, conv, betas=betas), stable)


def test_a_stopped_search_ends_as_a_finished_one(tmp_path, capsys):
    argv = "--task rot --size 16 --limit 20 --epochs 3 --partial 2 --max_skips 0 --alpha_lr 0"
    for resume in ("", "--resume"):
        genotype = run_search(argv, "--stop_stable 1 --out", tmp_path, resume)
        assert "stopped after epoch 2: the same cells for 1 epochs" in capsys.readouterr().out
        meta = read_json(tmp_path / "genotype.json")["meta"]
        assert len(meta["history"]) == meta["epoch"] == 2 and meta["evaluation"]["loss"] > 0
        assert meta["stopped"] == "the same cells for 1 epochs"
    arch = [torch.tensor(meta["history"][-1][name]) for name in ("alphas", "betas")]
    assert genotype == model_search.derive(*arch, max_skips=0)
    assert (
        "skip_connect" not in [op for op, _ in genotype.normal]
        and (tmp_path / "weights.png").exists()
    )


def test_fewer_images_for_the_alphas(tmp_path, watched):
    """Which are used several times in an epoch."""
    run_search("--task rot --epochs 1 --images 0.8 0.2 --batch_size 4 --out", tmp_path)
    w_part, alpha_part = data.split(data.load("shapes", limit=40)[0], 0, (0.8, 0.2), by_class=False)
    w_batches, alpha_batches = watched["batches"][1::2], watched["batches"][::2]
    assert len(w_batches) == len(alpha_batches) == len(w_part) // 4 == 8
    assert {i for batch in w_batches for i in batch} <= set(w_part.tolist())
    used = Counter(i for batch in alpha_batches for i in batch)
    assert {*used} == {*alpha_part.tolist()} and max(used.values()) <= -(-len(w_part) // len(used))
    assert len({tuple(batch) for batch in alpha_batches}) == 8  # in another order each time


@pytest.fixture
def my_photos(tmp_path):
    """A flat folder: 50 photos of all sizes and two formats, most of them above 160 pixels, and
    other files."""
    rng, root = np.random.RandomState(0), tmp_path / "my_photos"
    root.mkdir()
    for k in range(50):
        size = (90 + k, 60) if k < 10 else (330 - 3 * k, 200 + 4 * k)
        pixels = Image.fromarray(rng.randint(0, 256, (5, 6, 3)).astype(np.uint8))
        pixels.resize(size).save(root / f"{k}.{'png' if k % 5 else 'jpg'}")
    for name in ("broken.jpg", "phone.HEIC", "notes.txt", ".hidden.png"):
        (root / name).write_text("")
    return root


@pytest.mark.slow
def test_search_on_a_flat_folder(tmp_path, capsys, my_photos):
    argv = ["--dataset folder --data", my_photos, "--epochs 1 --out"]
    with pytest.raises(cli.InputError, match="needs labels"):
        run_search("--task cls", *argv, tmp_path / "cls")
    for task in ("rot", "col", "jig"):
        run_search(f"--task {task}", *argv, tmp_path / task)
        out = capsys.readouterr().out
        # a tenth of 51, 40 of the others
        assert "39 images to train, 5 to evaluate\n" in out
        assert "left out: 1 .heic, 1 .txt, 1 hidden\n" in out
        assert "left out: 1 unreadable\n" in out and "broken.jpg" in out
        assert "size 160, from the shorter sides of 50 images: 60 to 273 pixels, median 228" in out
        assert genotypes.load_arch(str(tmp_path / task / "genotype.json"))
    args = read_args(tmp_path / "jig")
    assert (args["size"], args["stem"]) == (160, "imagenet")
    run_train(*argv, tmp_path / "t", "--task rot --arch", tmp_path / "rot" / "genotype.json")
    assert read_args(tmp_path / "t")["size"] == 160
    run_search("--task rot", *argv, tmp_path / "rot", "--resume")  # the same size again
    (my_photos / "broken.jpg").unlink()
    for k in range(10, 50):  # only small photos are left
        (my_photos / f"{k}.{'png' if k % 5 else 'jpg'}").unlink()
    with pytest.raises(cli.InputError, match="size = 160, this run has 32"):
        run_search("--task rot", *argv, tmp_path / "rot", "--resume --batch_size 2")
    capsys.readouterr()
    run_search("--task rot", *argv, tmp_path / "own", "--size 24 --batch_size 2")
    assert read_args(tmp_path / "own")["size"] == 24 and "median" not in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# stopping and going on

# everything that holds a state or draws at random
STATEFUL = {
    search: "--task jig --epochs 4 --print_every 1 --size 16 --partial 2 --images 0.5 0.25",
    train: "--task rot --epochs 4 --print_every 1 --layers 3 --auxiliary 0.4 --drop_path 0.3"
    " --label_smoothing 0.1 --cutout 8 --warmup_epochs 2 --precise_bn 20",
}


@pytest.mark.parametrize(
    "script", [pytest.param(search, marks=pytest.mark.slow), train], ids=["search", "train"]
)
def test_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, capsys, script):
    argv = STATEFUL[script]
    run(script, argv, "--out", tmp_path / "whole")

    save = runs.Run.save

    def save_and_stop(self):
        save(self)
        if self.epochs_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "save", save_and_stop)
        run(script, argv, "--out", tmp_path / "stopped")
    with pytest.raises(cli.InputError, match="--resume"):
        run(script, argv, "--out", tmp_path / "stopped")
    torch.manual_seed(99)
    run(script, argv, "--out", tmp_path / "stopped", "--resume")
    assert "resumed after epoch 2" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    # SIGKILL within an epoch
    killed = tmp_path / "killed"
    options = words(OPTIONS[script], argv, "--out", killed, "--resume")
    options.append("--deterministic")  # changes nothing on a CPU
    command = [sys.executable, ROOT / f"{script.__name__}.py", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    log = killed / "log.jsonl"
    while not log.exists() or '"epoch": 3' not in log.read_text():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert read_checkpoint(killed)["epoch"] in (2, 3)
    with open(log, "a") as file:
        file.write('{"epoch": 4, "st')  # a torn line
    run(script, argv, "--out", killed, "--resume")
    assert_same_run(tmp_path / "whole", killed)
    if script is train:
        folders = ("whole", "stopped", "killed")
        results = [read_json(tmp_path / folder / "result.json") for folder in folders]
        scores = [result["epochs"] for result in results]
        assert scores[0] == scores[1] == scores[2] and len(scores[0]) == 4
        before = (killed / "result.json").stat().st_mtime_ns
        run(script, argv, "--out", killed, "--resume")
        assert "finished" in capsys.readouterr().out
        assert (killed / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
@BOTH
def test_sigterm_within_an_epoch(tmp_path, monkeypatch, capsys, script):
    """The signal arrives in the third or last step of the second epoch; the run ends after it, and
    goes on at the next."""
    argv = f"{STATEFUL[script]} --limit 48 --batch_size 4 --epochs 3"  # 6 or 12 steps an epoch
    run(script, argv, "--out", tmp_path / "whole")
    after_step, calls = runs.Run.after_step, []

    def signal_and_step(self):
        calls.append(1)
        if len(calls) == steps + at:
            signal.raise_signal(signal.SIGTERM)
        after_step(self)

    steps = max(line.get("step", 0) for line in read_log(tmp_path / "whole"))
    for at in (3, steps) if script is search else (3,):
        out = tmp_path / f"stopped{at}"
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
            patch.setattr(runs.Run, "after_step", signal_and_step)
            run(script, argv, "--out", out)
        assert exit_.value.code == runs.STOPPED == 75 and len(calls) == steps + at and steps >= 6
        assert "--resume goes on" in capsys.readouterr().err
        run(script, argv, "--out", out, "--resume")
        assert f"resumed after epoch 1 and {at} steps" in capsys.readouterr().out
        assert_same_run(tmp_path / "whole", out)


def test_saved_within_an_epoch(tmp_path, monkeypatch, capsys):
    run_train("--epochs 1 --out", tmp_path / "whole")
    save, saved = runs.Run.save, []

    def save_and_stop(self):
        save(self)
        saved.append((self.epochs_done, self.steps_done))
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.Run, "save", save_and_stop)
        run_train("--epochs 1 --save_every 1 --out", tmp_path / "killed")
    assert saved == [(0, 1), (0, 2)]
    run_train("--epochs 1 --out", tmp_path / "killed", "--resume")
    assert "resumed after epoch 0 and 2 steps" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_restart_by_torchrun_resumes(tmp_path, monkeypatch, capsys):
    run_train("--epochs 1 --out", tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run_train("--epochs 1 --out", tmp_path)
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_is_only_for_its_own_run(tmp_path, finished):
    run_train("--epochs 1 --out", tmp_path)
    if not finished:
        (tmp_path / "result.json").unlink()
    for argv, message in (
        ("--arch darts_v1", "genotype"),
        ("--lr 0.5", "lr = 0.05, this run has 0.5"),
        ("--limit 41", "limit|split"),
        ("--epochs 2", "epochs = 1, this run has 2"),
        ("--accumulate 2", "accumulate = 1, this run has 2"),  # BN's batches are the parts
    ):
        with pytest.raises(cli.InputError, match=message):
            run_train("--epochs 1 --out", tmp_path, "--resume", argv)
    (tmp_path / "result.json").unlink(missing_ok=True)
    for name in runs.CHECKPOINTS:
        (tmp_path / name).write_bytes(b"PK not a checkpoint")
    with pytest.raises(cli.InputError, match="no usable checkpoint"):
        run_train("--epochs 1 --out", tmp_path, "--resume")


def test_seeds_differ_and_repeat(tmp_path):
    losses = []
    for i, seed in enumerate((0, 1, 0)):
        result = run_train(f"--epochs 1 --seed {seed} --out", tmp_path / f"{i}")
        losses.append(result["epochs"])
    assert losses[0] == losses[2] and losses[0] != losses[1]


def test_precise_bn_reads_that_many_images(tmp_path):
    run_train("--epochs 1 --precise_bn 25 --out", tmp_path)
    state = read_checkpoint(tmp_path)["network"]
    counts = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert counts == {2}  # 25 images in full batches of 10, counted anew
    # a map of 1 x 1 in the auxiliary head, whose BN a batch of one would break
    argv = "--layers 3 --auxiliary 0.4 --drop_path 0.2 --precise_bn 21"
    run_train("--epochs 1", argv, "--out", tmp_path / "auxiliary")


FP16 = pytest.param("--amp fp16", marks=pytest.mark.slow)


@BOTH
@pytest.mark.parametrize("amp", ["", FP16], ids=["fp32", "fp16"])
def test_a_loss_that_is_not_finite_ends_the_run_at_that_step(tmp_path, monkeypatch, script, amp):
    """In the second epoch, between two prints, with a checkpoint due after each step."""
    prepare, steps = pretext.Rotation.prepare, []
    argv = f"--task rot --epochs 2 --limit 16 --batch_size 4 --size 16 {amp} --out"

    def poisoned(self, *batch, train):
        x, y = prepare(self, *batch, train=train)
        steps.append(train)
        return x * (float("nan") if len(steps) == poisoned_at else 1), y

    def run_poisoned(out):
        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr(pretext.Rotation, "prepare", poisoned)
            run(script, "--save_every 1 --print_every 100", argv, out)

    # two batches a step of a search; four of a training and four to evaluate
    per_epoch = 4 if script is search else 4 + 4
    for batch in (2, 3) if script is search else (2,):  # of the alphas, of the weights
        poisoned_at, out = per_epoch + batch, tmp_path / str(batch)
        message = "loss is not finite by epoch 2, step [12], task rot"
        with pytest.raises(cli.InputError, match=message):
            run_poisoned(out)
        step = 1 if script is train or batch == 3 else 0
        state = read_checkpoint(out)
        assert (state["epoch"], state["step"]) == (1, step)
        network = next(state[key] for key in ("supernet", "network") if key in state)
        assert all(value.isfinite().all() for value in network.values())
        run(script, argv, out, "--resume")


def test_a_gpu_is_asked_about_its_losses_before_a_line_shows_them(monkeypatch):
    run = runs.Run.__new__(runs.Run)
    run.device, run.steps = torch.device("cuda"), 9
    run.sigterm = run.epochs_done = run.steps_done = 0
    run.args = argparse.Namespace(print_every=2, save_every=0, task="rot")
    run.meters = {"w": argparse.Namespace(loss=torch.tensor(math.nan))}
    run.after_step()
    with pytest.raises(cli.TrainingError, match="by epoch 1, step 2, task rot"):
        run.after_step()


@BOTH
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, script):
    """The last step of an epoch spoils them, at a finite loss."""
    step, steps = torch.optim.SGD.step, []

    def diverge(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(1)
        if len(steps) == (2 if script is search else 4):
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", diverge)
    with pytest.raises(cli.InputError, match="network is not finite by epoch 1, step"):
        run(script, "--task rot --epochs 1 --out", tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_diverging_training_says_so(tmp_path):
    for batch in (10, 40):  # of one step an epoch only the evaluation sees it
        out = tmp_path / str(batch)
        argv = f"--epochs 1 --lr 1e20 --grad_clip 0 --batch_size {batch} --out"
        message = r"loss is not finite by epoch 1, step \d, task cls"
        with pytest.raises(cli.InputError, match=message):
            run_train(argv, out)
        if batch == 10:
            assert not (out / "checkpoint.pt").exists()
        else:  # what was evaluated
            network = read_checkpoint(out)["network"]
            assert all(value.isfinite().all() for value in network.values())


def test_accumulated_parts_are_the_batch(tmp_path, monkeypatch):
    """Without augmentation and with fixed statistics of BN the mean gradient over the parts is
    that of the batch."""
    prepare = pretext.Classification.prepare

    def prepare_without_augmentation(self, *batch, train):
        return prepare(self, *batch, train=False)

    def keep_statistics(self, mode=True):
        return torch.nn.Module.train(self, False)

    monkeypatch.setattr(pretext.Classification, "prepare", prepare_without_augmentation)
    monkeypatch.setattr(torch.nn.BatchNorm2d, "train", keep_statistics)
    for parts in (1, 5):
        run_train(f"--epochs 2 --accumulate {parts} --out", tmp_path / str(parts))
    states = [read_checkpoint(tmp_path / parts)["network"] for parts in ("1", "5")]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(cli.InputError, match="--batch_size 10"):
        run_train("--epochs 1 --accumulate 6 --out", tmp_path / "6")


@BOTH
@pytest.mark.parametrize("amp", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_mixed_precision(tmp_path, script, amp):
    """The first step's loss; then fp16 leaves out a step or two, until its scale fits."""
    first = []
    argv = "--task rot --limit 16 --batch_size 4 --size 16 --epochs 1 --print_every 1"
    for options in ("", f"--amp {amp}"):
        out = tmp_path / f"run{len(first)}"
        run(script, argv, options, "--out", out)
        first.append(read_log(out)[1]["loss"])
        assert ("scale" in read_checkpoint(out)["scaler"]) == ("fp16" in options)
    assert first[0] != first[1] == pytest.approx(first[0], rel=0.01)


def test_compiled_training_is_the_eager_one(tmp_path, monkeypatch):
    """With the tracer of torch.compile alone, as its compiler takes minutes."""
    compiled = partial(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self))
    few = "--layers 1 --limit 30 --epochs 1 --out"
    eager = run_train(few, tmp_path / "eager")
    traced = run_train(few, tmp_path / "traced", "--compile")
    loss = eager["epochs"][0]["train_loss"]
    assert traced["epochs"][0]["train_loss"] == pytest.approx(loss, rel=1e-5)
    names = [read_checkpoint(tmp_path / out)["network"].keys() for out in ("eager", "traced")]
    assert names[0] == names[1]


def test_width_within_a_budget(tmp_path, capsys):
    result = run_train("--width 12 --epochs 1 --out", tmp_path / "12")
    narrow = OPTIONS[train].replace("--width 4 ", "")
    for budget, width in ((result["macs"], 12), (result["macs"] - 1, 10)):
        argv = f"{narrow} --max_macs {budget} --epochs 1 --out"
        args = train.parse_args(words(argv, tmp_path / f"w{width}"))
        if width == 12:
            assert train.main(args)["macs"] == result["macs"]
        else:
            assert train.main(args)["macs"] < result["macs"]
        assert args.width == width
    assert train.largest_width(lambda width: width**2, 99**2) == 98
    assert train.largest_width(lambda width: width, 2) == 2
    with pytest.raises(cli.InputError, match="--max_macs 10:"):
        train.largest_width(lambda width: 6 * width, 10)
    with pytest.raises(SystemExit):
        run_train("--max_macs 1e6 --epochs 1 --out", tmp_path / "both")
    assert "not allowed with argument" in capsys.readouterr().err


def test_search_without_clipping_learns(tmp_path):
    run_search("--task cls --epochs 3 --grad_clip 0 --out", tmp_path)
    losses = [line["w_loss"] for line in read_log(tmp_path) if "w_loss" in line]
    assert losses[-1] < losses[0] - 0.02


# --------------------------------------------------------------------------------------------------
# bad input: one line, exit code 2, no traceback, nothing written

# script, words of the message, options
BAD = {
    "unknown genotype": (train, "no/genotype.json", "--arch no/genotype.json"),
    "missing folder": (search, "no/photos", "--dataset folder --data no/photos"),
    "path of no data set": (search, "--data my_photos", "--data my_photos"),
    "folder without images": (
        *(search, "tests: no images (.bmp"),
        *("--dataset folder --data", ROOT / "tests"),
    ),
    "no path": (search, "--data", "--dataset folder"),
    "batch larger than half the data": (search, "--batch_size 21", "--batch_size 21"),
    "batch larger than the data": (train, "--batch_size 41", "--batch_size 41"),
    "size of another data set": (train, "--size 64", "--size 64"),
    "size that vanishes": (search, "less than one", "--stem imagenet --layers 4 --task jig"),
    "auxiliary head on colorization": (train, "--auxiliary", "--task col --auxiliary 0.4"),
    "auxiliary head on too small a map": (train, "1 x 1", "--stem imagenet --auxiliary 0.4"),
    "device": (train, "cuda:99", "--device cuda:99"),
    "partial channels": (search, "--partial 3 does not divide --width 4", "--partial 3"),
    "more than all images": (search, "--images 0.8 0.3", "--images 0.8 0.3"),
    "no images for the alphas": (search, "--images 0.8 0.0: of 40", "--images 0.8 0"),
    "odd width": (search, "--width", "--width 7"),
    "negative rate": (search, "--lr", "--lr -1"),
    "drop path of one": (train, "--drop_path", "--drop_path 1"),
    "alphas that never start": (search, "--alpha_start 2", "--epochs 2 --alpha_start 2"),
    "output below a file": (train, str(Path("test_runs.py", "x")), "--out", Path(__file__) / "x"),
    "unknown kind of device": (train, "--device meta", "--device meta"),
    "seed": (train, "--seed", "--seed 99999999999999999999"),
    "no epochs": (train, "--epochs", "--epochs 0"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(tmp_path, monkeypatch, capsys, case):
    script, message, *argv = BAD[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        cli.run(script.main, script.parse_args, words(OPTIONS[script], *argv))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2 and "error: " in last and message in last
    assert not list(tmp_path.iterdir())


def test_bad_input_as_a_command(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--arch", "resnet50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "resnet50" in done.stderr


def test_the_processor_is_named(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    name = runs.environment(torch.device("cpu"))["device"]
    assert name.endswith(f", {torch.backends.cpu.get_cpu_capability()}, 3 threads")
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert f": {name.split(', ')[0]}\n" in cpuinfo.read_text()


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 / 0, lambda argv: None)
