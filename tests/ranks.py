"""What test_distributed.py runs in several processes: `torchrun tests/ranks.py OUT`. Rank 0 writes what it found to OUT."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn as nn

import cli
import data
import model_eval
import pretext
import runs
import search
import train
import utils
from cli import InputError
from genotypes import load_arch

SMALL = ["--width", "4", "--layers", "2", "--device", "cpu", "--epochs", "1"]
STOPPED = [
    *SMALL,
    "--arch",
    "darts_v2",
    "--limit",
    "60",
    "--batch_size",
    "12",
    "--epochs",
    "6",
]  # what is stopped or killed


def evaluations():
    """Metrics of one network of each task on 47 images, which no number of processes divides evenly."""
    found = {}
    for name in pretext.TASKS:
        _, test = data.load("shapes", limit=47)
        task = pretext.make_task(name, test, 32, "cifar", 2, "cpu")
        torch.manual_seed(0)
        network = model_eval.Network(
            load_arch("darts_v2"), 4, 2, "cifar", task.head, task.in_channels, task.reductions
        )
        batches = data.batches(test, task.view, 12, "cpu")
        found[name] = utils.evaluate(
            network, task, batches, utils.precision(torch.device("cpu"), None)[0]
        )
    return found


def exact_search(out, reduce_alphas=True):
    """An epoch of a search in which one process and several compute the same: float64, BN with fixed statistics, no
    augmentation. Returns its losses, alpha gradients, genotype and error."""
    torch.set_default_dtype(torch.float64)
    gradients, genotype, error = [], None, None
    plain = {
        "train": nn.BatchNorm2d.train,
        "prepare": pretext.Rotation.prepare,
        "step": torch.optim.Adam.step,
        "average": utils.average_gradients,
    }

    def step(self, *args, **kwargs):
        gradients.append(self.param_groups[0]["params"][0].grad.flatten().tolist())
        return plain["step"](self, *args, **kwargs)

    def average_gradients(parameters):
        if reduce_alphas or not isinstance(parameters, list):
            plain["average"](parameters)

    nn.BatchNorm2d.train = lambda self, mode=True: plain["train"](self, False)
    pretext.Rotation.prepare = lambda self, *batch, train: plain["prepare"](
        self, *batch, train=False
    )
    torch.optim.Adam.step, utils.average_gradients = step, average_gradients
    try:
        argv = [
            *SMALL,
            "--task",
            "rot",
            "--size",
            "16",
            "--limit",
            "128",
            "--batch_size",
            "32",
            "--print_every",
            "1",
        ]
        argv += ["--out", str(out)]
        genotype = search.main(search.parse_args(argv))
    except RuntimeError as raised:
        error = str(raised)
    finally:
        nn.BatchNorm2d.train, pretext.Rotation.prepare = plain["train"], plain["prepare"]
        torch.optim.Adam.step, utils.average_gradients = plain["step"], plain["average"]
        torch.set_default_dtype(torch.float32)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        "losses": [line["loss"] for line in lines if "step" in line],
        "gradients": gradients,
        "genotype": genotype,
        "error": error,
    }


def whole_runs(out):
    """A search and a training of each task."""
    for task in pretext.TASKS:
        argv = [*SMALL, "--task", task, "--limit", "41", "--batch_size", "10"]
        search.main(search.parse_args([*argv, "--out", str(out / f"search_{task}")]))
        train.main(
            train.parse_args([*argv, "--arch", "darts_v2", "--out", str(out / f"train_{task}")])
        )


def run_with_nan(out):
    """The inputs of the last rank alone are not numbers; all ranks must say so."""
    plain = pretext.Rotation.prepare

    def prepare(self, *batch, train):
        x, y = plain(self, *batch, train=train)
        return x * float("nan") if utils.rank() == utils.world_size() - 1 else x, y

    pretext.Rotation.prepare, error = prepare, None
    try:
        argv = [
            *SMALL,
            "--arch",
            "darts_v2",
            "--task",
            "rot",
            "--limit",
            "40",
            "--batch_size",
            "10",
            "--print_every",
            "1",
        ]
        train.main(train.parse_args([*argv, "--out", str(out)]))
    except InputError as raised:
        error = str(raised)
    pretext.Rotation.prepare = plain
    return utils.gather(error)


def stopped_run(out):
    """SIGTERM reaches one rank alone in the second step; all stop after it. Then the same run undisturbed and resumed."""
    train.main(train.parse_args([*STOPPED, "--out", str(out / "whole")]))
    after_step, calls = runs.Run.after_step, []

    def signal_and_step(self):
        calls.append(1)
        last = utils.rank() == utils.world_size() - 1
        self.sigterm = len(calls) == 7 and last  # in the second epoch
        after_step(self)

    runs.Run.after_step = signal_and_step
    code = None
    try:
        train.main(train.parse_args([*STOPPED, "--out", str(out / "stopped")]))
    except SystemExit as exit_:
        code = exit_.code
    runs.Run.after_step = after_step
    train.main(train.parse_args([*STOPPED, "--out", str(out / "stopped"), "--resume"]))
    return {"code": code, "calls": len(calls)}


def main(out):
    out = Path(out)
    args = train.parse_args(["--arch", "darts_v2", "--device", "cpu"])
    utils.setup(args)
    runs.Run.finish = lambda self: None  # one process group for all of this
    found = {"world": utils.world_size(), "evaluations": evaluations()}
    if utils.world_size() == 2:
        found["exact"] = exact_search(out / "exact")
        found["without"] = exact_search(out / "without", reduce_alphas=False)
        whole_runs(out)
        found["stopped"] = stopped_run(out)
        found["nan"] = run_with_nan(out / "nan")
    if not utils.rank():
        cli.write_json(out / "found.json", found)
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(
        0
    )  # all is written; gloo's threads now and then abort a process that takes its group down at the end


if __name__ == "__main__":
    main(*sys.argv[1:])
