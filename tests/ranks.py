"""What test_distributed.py runs in several processes: `torchrun tests/ranks.py OUT`. Rank 0 writes
what it found to OUT."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import cli
import torch
import torch.nn as nn
from cli import InputError

import data
import model_eval
import pretext
import runs
import search
import train
import utils
from genotypes import load_arch

SMALL = "--width 4 --layers 2 --device cpu --epochs 1".split()
STOPPED = [*SMALL, *"--arch darts_v2 --limit 60 --batch_size 12 --epochs 6".split()]


def evaluations():
    """Metrics of one network of each task on 47 images, which no number of processes divides."""
    found = {}
    for name in pretext.TASKS:
        _, test = data.load("shapes", limit=47)
        task = pretext.make_task(name, test, 32, "cifar", 2, "cpu")
        torch.manual_seed(0)
        network = model_eval.Network(load_arch("darts_v2"), 4, 2, "cifar", **task.network_args)
        batches = data.batches(test, task.view, 12, "cpu")
        found[name] = utils.evaluate(network, task, batches, nullcontext())
    return found


def exact_search(out, partial=2, reduce_alphas=True):
    """An epoch of a search in which one process and several compute the same: float64, BN with
    fixed statistics, no augmentation. Returns its losses, alpha gradients, genotype and error."""
    gradients, genotype, error = [], None, None
    set_mode, prepare = nn.BatchNorm2d.train, pretext.Rotation.prepare
    take_step, average = torch.optim.Adam.step, utils.average_gradients

    def keep_statistics(self, mode=True):
        return set_mode(self, False)

    def prepare_without_augmentation(self, *batch, train):
        return prepare(self, *batch, train=False)

    def step(self, *args, **kwargs):
        flat = [p.grad.flatten() for p in self.param_groups[0]["params"]]  # alphas and betas
        gradients.append(torch.cat(flat).tolist())
        return take_step(self, *args, **kwargs)

    def average_gradients(parameters):
        if reduce_alphas or not isinstance(parameters, list):
            average(parameters)

    argv = "--task rot --size 16 --limit 64 --batch_size 16 --print_every 1".split()
    torch.set_default_dtype(torch.float64)
    nn.BatchNorm2d.train, pretext.Rotation.prepare = keep_statistics, prepare_without_augmentation
    torch.optim.Adam.step, utils.average_gradients = step, average_gradients
    try:
        genotype = search.main(
            search.parse_args([*SMALL, *argv, "--partial", str(partial), "--out", str(out)])
        )
    except RuntimeError as raised:
        error = str(raised)
    finally:
        nn.BatchNorm2d.train, pretext.Rotation.prepare = set_mode, prepare
        torch.optim.Adam.step, utils.average_gradients = take_step, average
        torch.set_default_dtype(torch.float32)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "step" in line]
    return {"losses": losses, "gradients": gradients, "genotype": genotype, "error": error}


def whole_runs(out):
    """A search and a training of each task."""
    for task in pretext.TASKS:
        argv = [*SMALL, *f"--task {task} --size 16 --limit 41 --batch_size 10 --out".split()]
        search.main(search.parse_args([*argv, str(out / f"search_{task}")]))
        train.main(train.parse_args([*argv, str(out / f"train_{task}"), "--arch", "darts_v2"]))


def run_with_nan(out):
    """The inputs of the last rank alone are not numbers; all ranks must say so."""
    prepare, error = pretext.Rotation.prepare, None

    def poisoned(self, *batch, train):
        x, y = prepare(self, *batch, train=train)
        return x * float("nan") if utils.rank() == utils.world_size() - 1 else x, y

    argv = "--arch darts_v2 --task rot --limit 40 --batch_size 10 --print_every 1 --out".split()
    pretext.Rotation.prepare = poisoned
    try:
        train.main(train.parse_args([*SMALL, *argv, str(out)]))
    except InputError as raised:
        error = str(raised)
    pretext.Rotation.prepare = prepare
    return utils.gather(error)


def stopped_run(out):
    """SIGTERM reaches one rank alone in the second epoch; all stop after that step. The same run
    undisturbed, and resumed."""
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
        found["exact"] = {K: exact_search(out / f"exact{K}", K) for K in (1, 2)}
        found["without"] = exact_search(out / "without", reduce_alphas=False)
        whole_runs(out)
        found["stopped"] = stopped_run(out)
        found["nan"] = run_with_nan(out / "nan")
    if not utils.rank():
        cli.write_json(out / "found.json", found)
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # all is written, and gloo's threads now and then abort a process that ends


if __name__ == "__main__":
    main(*sys.argv[1:])
