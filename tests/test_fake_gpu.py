"""What can be said about a GPU without one. The loops of search.py and train.py run on fake CUDA
tensors, which have a device and a shape and no content: a tensor on the wrong device is an error
there, and so is what reads a value back to the host, which would have to wait for a GPU."""

import json
import os
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

import data
import genotypes
import model_eval
import pretext
import runs
import search
import train
import utils

SMALL = "--device cuda --width 4 --layers 2 --batch_size 8 --limit 16 --epochs 1".split()


class EndOfEpoch(Exception):
    pass


def backward(loss):
    """Gives each leaf a gradient, as PyTorch's own engine asks the driver for a device."""
    nodes = [loss.grad_fn]
    for node in nodes:
        nodes += {f for f, _ in node.next_functions if f and f not in nodes}
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)


@pytest.fixture
def on_fake_gpu(monkeypatch, tmp_path):
    """A function that runs the steps of an epoch of a script on fake CUDA tensors."""
    if torch.__version__ < "2.10" and torch.version.cuda and not torch.cuda.is_available():
        pytest.skip("PyTorch 2.9 with CUDA, but no driver, asks for one even for fake tensors")
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def really(function):
        """As the loaders of images and what counts and splits them do their work on the host."""

        def call(*args, **kwargs):
            with _disable_current_modes():
                return function(*args, **kwargs)

        return call

    for module, name in (
        *((data, name) for name in ("load", "random_subset", "split_in_half", "split_hash")),
        *((utils, name) for name in ("any_rank", "count")),
    ):
        monkeypatch.setattr(module, name, really(getattr(module, name)))
    read = data.batches

    def batches(dataset, view, batch_size, device, *how):
        assert device == torch.device("cuda")
        for batch in really(lambda: list(read(dataset, view, batch_size, "cpu", *how)))():
            yield tuple(x if x is None else mode.from_tensor(x).to(device) for x in batch)

    def place(network, device, sync_bn):  # as Module.to cannot exchange fake weights
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, x in tensors.items():
                    x = x if x is None else x.detach().to(device, memory_format=layout(x))
                    keep = torch.nn.Parameter if tensors is module._parameters else lambda x: x
                    tensors[name] = x if x is None else keep(x)
        return network

    def layout(x):
        return torch.channels_last if x.dim() == 4 else torch.preserve_format

    def choose_layout(network, autocast, batch_size, shape, *alphas):  # of real time, see below
        with autocast:
            network(torch.ones(batch_size, *shape[1:], device="cuda"), *alphas)
        return ""

    def end(run):
        tensors = [*run.network.parameters(), *(meter.loss for meter in run.meters.values())]
        assert all(isinstance(x, FakeTensor) and x.device.type == "cuda" for x in tensors)
        raise EndOfEpoch

    monkeypatch.setattr(data, "batches", batches)
    monkeypatch.setattr(utils, "place", place)
    monkeypatch.setattr(utils, "choose_layout", choose_layout)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "fake")
    # Fake tensors have no values to ask about.
    monkeypatch.setattr(runs.Run, "losses_are_finite", lambda run: True)
    monkeypatch.setattr(runs.Run, "print_progress", end)

    def steps_of(script, *argv):
        if "col" in argv:
            pretext.color_tables()  # kept; it picks by value
        args = script.parse_args([*SMALL, *argv, "--out", str(tmp_path)])
        with mode, pytest.raises(EndOfEpoch):
            script.main(args, *[data.load] * (script is train))  # the one from above

    return steps_of


@pytest.mark.slow
@pytest.mark.parametrize("task", pretext.TASKS)
def test_search(on_fake_gpu, task):
    on_fake_gpu(search, "--task", task, "--alpha_start", "0")


MORE = "--layers 3 --auxiliary 0.4 --drop_path 0.2 --cutout 8 --label_smoothing 0.1"


@pytest.mark.parametrize("task", pretext.TASKS)
def test_train(on_fake_gpu, task):
    more = MORE.split() if task == "cls" else []
    on_fake_gpu(train, "--task", task, "--arch", "darts_v2", *more)


def test_train_a_nasbench_cell(on_fake_gpu, tmp_path):
    ops = ["input", "conv3x3-bn-relu", "maxpool3x3", "output"]
    matrix = [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    path = tmp_path / "cell.json"
    path.write_text(json.dumps({"space": "nasbench101", "matrix": matrix, "ops": ops}))
    on_fake_gpu(train, "--arch", str(path), "--layers", "3")


@pytest.mark.parametrize(
    "flaw, message",
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x + torch.ones(1, 3, 1, 1).cpu() * torch.ones(2).sum(), "device"),
    ],
)
def test_what_it_finds(on_fake_gpu, monkeypatch, flaw, message):
    def prepare(task, images, labels, index, train):
        flaw(images.float())

    monkeypatch.setattr(pretext.Classification, "prepare", prepare)
    with pytest.raises(Exception, match=message):
        on_fake_gpu(train, "--arch", "darts_v2")


@pytest.mark.parametrize("slow", [torch.channels_last, torch.contiguous_format])
def test_the_faster_memory_format(monkeypatch, slow):
    class Network(torch.nn.Sequential):
        def forward(self, x):
            if self[0].weight.is_contiguous(memory_format=slow):
                time.sleep(0.02)
            return super().forward(x), None

    network = Network(torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4))
    state = [x.clone() for x in (*network.state_dict().values(), torch.get_rng_state())]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    line = utils.choose_layout(network, nullcontext(), 2, (1, 4, 8, 8))
    assert line.count("ms a step in torch.") == 2
    assert not network[0].weight.is_contiguous(memory_format=slow)
    after = [*network.state_dict().values(), torch.get_rng_state()]
    assert all(map(torch.equal, state, after)) and network[0].weight.grad is None


def test_memory_formats_are_tried_on_all_tiles(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    images = data.ImageSet(torch.zeros(8, 96, 96, 3, dtype=torch.uint8))
    task = pretext.make_task("jig", images, 96, "imagenet", 1, "cpu")
    assert task.input_shape[0] == 9
    arch = genotypes.load_arch("darts_v2")
    network = model_eval.build_network(arch, 4, 1, "imagenet", **task.network_args)
    assert "ms a step" in utils.choose_layout(network, nullcontext(), 4, task.input_shape)


FAKE = """#!/bin/bash
echo "$@" >> calls
case "$*" in
*"$BROKEN"*) exit 2 ;;
*"--out runs/gpu/stopped_"*.py) out=runs/gpu/stopped_$1
    mkdir -p $out; echo '"epoch": 3, "step": 2' > $out/log.jsonl
    trap "exit 75" TERM; while true; do sleep 0.02; done ;;
esac
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_script_for_gpus(tmp_path):
    """Its commands, as a fake `python` gets them, are those of the scripts; a broken one does not
    keep it from the others."""
    (tmp_path / "tests").mkdir()
    script = shutil.copy(Path(__file__).parent / "gpu.sh", tmp_path / "tests")
    for name in ("python", "torchrun"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)

    def start(broken):
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BROKEN": broken}
        return subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=60)

    done = start("nothing")
    assert (done.returncode, done.stderr) == (0, "")
    seen = set()
    for line in (tmp_path / "calls").read_text().splitlines():
        words = line.split()
        for name, module in (("search.py", search), ("train.py", train)):
            if name in words:
                args = module.parse_args(words[words.index(name) + 1 :])
                seen.add((name, args.task, args.amp, args.deterministic, args.out))
    assert len(seen) == 1 + 5 * (4 + 5) + 4 and "-m pytest -q" in (tmp_path / "calls").read_text()
    well = {line for line in done.stdout.splitlines() if line.startswith("ok: ")}
    done = start("amp fp16")
    failed = {line for line in done.stdout.splitlines() if line.startswith("FAILED: ")}
    assert done.returncode == 1 and len(failed) == 10 and "FAILED: search_col__amp_fp16" in failed
    assert well - {*done.stdout.splitlines()} == {line.replace("FAILED", "ok") for line in failed}
