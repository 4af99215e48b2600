"""A run of search.py or train.py: its folder, its settings, how far it is.

    run = Run(args, "name of the folder", device)
    run.identify(split=...)
    run.start(parts, meters, steps)
    for epoch in run.epochs():
        for batch in batches:  # from step run.steps_done on
            ...
            run.after_step()
        run.after_epoch(lr, results)
    run.finish()

All ranks call all of these methods, in which they exchange messages; rank 0 alone prints and
writes. The folder gets log.jsonl and checkpoint.pt: after each epoch, every --save_every steps, and
on SIGTERM. A run that was killed at any moment goes on from it with --resume, to the result of an
undisturbed run.
"""

import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import cli
import torch
import torch.distributed as dist
from cli import NUMBER, InputError, TrainingError, at_least, format_metrics, format_seconds
from filelock import FileLock, Timeout

import genotypes
import utils

CHECKPOINTS = "checkpoint.pt", "checkpoint.old.pt"  # the last one and the one before
CHECKPOINT = {"identity": {"split": str}, "epoch": int, "step": int, "seconds": NUMBER}
CHECKPOINT |= {"history": [dict], "meters": dict, "rng": [dict]}  # its shape: see cli.check_shape
STOPPED = 75  # exit code EX_TEMPFAIL: start it again

# The arguments that may differ between two starts of the same run
WHERE_AND_HOW = ["arch", "data", "out", "device", "workers", "compile", "deterministic", "resume"]
WHERE_AND_HOW += ["print_every", "save_every"]


def add_arguments(group):
    """The options of a run that are not about data, model or optimiser."""
    add, cuda = group.add_argument, torch.cuda.is_available()
    add("--out", type=cli.path, metavar="DIR", help="where to write (default: a name under runs/)")
    add("--seed", type=at_least(0, int, 2**32), default=0, help="of weights, batches and splits")
    add("--device", default="cuda" if cuda else "cpu", help="cpu, cuda, cuda:1 ...")
    add("--workers", type=at_least(0, int), help="decoders a rank (default: its cores, up to 8)")
    add("--deterministic", action="store_true", help="reproducible on a GPU, too; slower")
    add("--amp", choices=["bf16", "fp16"], help="mixed precision; fp16 for older GPUs")
    add("--sync_bn", action="store_true", help="BN statistics over all ranks (GPUs only)")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--save_every", type=at_least(0, int), default=0, help="steps between saves; 0: epochs")
    add("--print_every", type=at_least(1, int), default=50, help="steps between two lines")


class Run:
    """args: all settings; name: of the folder below runs/, if there is no --out."""

    def __init__(self, args, name, device):
        self.args, self.device, self.out = args, device, Path(args.out or f"runs/{name}")
        if not args.resume and (find_checkpoint(self.out) or (self.out / "log.jsonl").exists()):
            raise InputError(f"{self.out} holds a run: --resume goes on with it; or another --out")
        utils.gather(None)  # all ranks have looked before rank 0 writes
        self.epochs_done = self.steps_done = 0  # whole epochs, and steps of the one after them
        self.seconds, self.history = 0.0, []
        self.environment = environment(device)
        self.sigterm = 0  # when it came

    def identify(self, **more):
        """What two starts of the same run agree on: settings, and `more`."""
        self.identity = settings_of(self.args) | more
        self.header = {"args": vars(self.args), **self.environment, "split": more["split"]}

    def finished(self):
        """The result of this run if it ended before, else None."""
        path = self.out / "result.json"
        ended = self.args.resume and path.exists() and path.stat().st_size > 0
        utils.check_same("whether --out holds a finished run", ended)
        if ended:
            result = genotypes.read_result(path)
            check_identity(path, result["identity"], self.identity)
            self.print(f"finished: {path}")
            return result

    def start(self, parts, meters, steps):
        """Resumes if there is a checkpoint, prints the settings and opens the log. parts: {name:
        what a checkpoint holds and has a state dict}, the network first; meters: {name: Meter of
        an epoch}, the one that is printed first; steps: in an epoch."""
        self.parts, self.meters, self.steps = parts, meters, steps
        self.network = next(iter(parts.values()))
        self.lock()
        if self.args.resume and find_checkpoint(self.out):
            self.load()
        position = self.epochs_done, self.steps_done, self.args.size, self.identity["split"]
        utils.check_same("the checkpoint in --out and the images in --data", position)
        shown = [f"{k} {v}" for k, v in vars(self.args).items() if v is not None]
        self.print(f"settings: {', '.join(shown)}", f"writing to {self.out}")
        if not utils.rank():
            start_log(self.out / "log.jsonl", self.header, self.epochs_done, self.steps_done)
        if threading.current_thread() is threading.main_thread():  # Python allows it there alone
            signal.signal(signal.SIGTERM, self.on_sigterm)
        self.started = time.time(), self.epochs_done * steps + self.steps_done

    def lock(self):
        """For the life of this run, as two in one folder would mix their logs."""
        taken = False
        if not utils.rank():
            self.out.mkdir(parents=True, exist_ok=True)
            # a singleton, so that a process may try again after an error, as in a notebook
            self.folder_lock = FileLock(self.out / ".lock", is_singleton=True)
            try:
                self.folder_lock.acquire(timeout=0)
                cli.remove_partial_files(self.out)
            except Timeout:
                taken = True
        if any(utils.any_rank(taken)):
            raise InputError(f"{self.out}: another process is at work there; choose another --out")

    # ---------------------------------------------------------------------------- the loop

    def epochs(self):
        """The epochs that are left; they count from 1."""
        for epoch in range(self.epochs_done + 1, self.args.epochs + 1):
            self.epoch_started = time.time()
            self.printed = self.epoch_started, self.steps_done
            yield epoch

    def after_step(self):
        """After each optimiser step, in which the meters were updated: ends the run if a loss is
        not finite or SIGTERM came; prints and saves when it is time."""
        self.steps_done += 1
        utils.progress = f"after epoch {self.epochs_done}, step {self.steps_done}"
        due = self.steps_done % self.args.print_every == 0 or self.steps_done == self.steps
        asked = due or self.device.type == "cpu"  # a GPU not at each step, as the host would wait
        finite = not asked or self.losses_are_finite()
        stop, not_finite = utils.any_rank(bool(self.sigterm), not finite)
        if not_finite:
            self.fail("loss")
        if due:
            self.print_progress()
        every = self.args.save_every
        if stop or (every and self.steps_done % every == 0):
            self.save()
        if stop:
            self.stop()

    def after_epoch(self, lr, results, **log_only):
        """results: of this epoch, which join those of the meters in the history and in the log;
        `log_only` goes to the log alone."""
        metrics = {}
        for name, meter in self.meters.items():
            metrics |= {f"{name}_{key}": value for key, value in meter.result().items()}
            meter.reset()
        if not metrics:
            raise InputError(f"epoch {self.epochs_done + 1}: nothing counts, as in masks of 255")
        metrics |= results
        now = time.time()
        self.seconds, self.epoch_started = self.seconds + now - self.epoch_started, now
        self.epochs_done, self.steps_done = self.epochs_done + 1, 0
        self.history.append({"epoch": self.epochs_done, "lr": lr, **metrics})
        self.write_log(**self.history[-1], **log_only, seconds=round(self.seconds, 1))
        self.print(f"epoch {self.epochs_done}/{self.args.epochs} done  {format_metrics(metrics)}")
        self.save()

    def finish(self):
        """At the end of a run that went well."""
        if not utils.rank():
            self.folder_lock.release(force=True)
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def losses_are_finite(self):
        """Whether all losses of this epoch are, so far."""
        return all(meter.loss.isfinite() for meter in self.meters.values())

    def check_finite(self, result):
        """The result of an evaluation, in which something must count, with a finite loss."""
        if not result:
            raise InputError(f"task {self.args.task}: nothing in the evaluation images counts")
        if not math.isfinite(result["loss"]):
            self.fail("loss")
        return result

    def fail(self, what):
        epoch, step = self.epochs_done + bool(self.steps_done), self.steps_done or self.steps
        raise TrainingError(
            f"the {what} is not finite by epoch {epoch}, step {step}, task {self.args.task}: try a"
            " smaller --lr, --alpha_lr or --weight_decay, and look at the data"
        )

    # ---------------------------------------------------------------------------- checkpoints

    def save(self):
        """Writes the checkpoint and keeps the one before, or ends the run where losses or weights
        are not finite."""
        utils.average_statistics(self.network)
        meters = {name: meter.state() for name, meter in self.meters.items()}
        if not all(loss.isfinite() for loss, _ in meters.values()):
            self.fail("loss")
        if not all(value.isfinite().all() for value in self.network.state_dict().values()):
            self.fail("network")
        rng = {"cpu": torch.get_rng_state()}  # augmentation draws from torch's generators
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {"identity": self.identity, "epoch": self.epochs_done, "step": self.steps_done}
        state["seconds"] = self.seconds + time.time() - self.epoch_started
        state |= {"history": self.history, "meters": meters, "rng": utils.gather(rng)}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        if not utils.rank():
            path, previous = (self.out / name for name in CHECKPOINTS)
            content = io.BytesIO()  # torch.save into a file hides a full disk and Ctrl-C
            torch.save(state, content)
            cli.replace_file(path, lambda file: file.write(content.getbuffer()), keep=previous)

    def load(self):
        path, state = load_checkpoint(self.out, self.print)
        check_identity(path, state["identity"], self.identity)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
                exactly = dict(rtol=0, atol=0, equal_nan=True, check_device=False)
                torch.testing.assert_close(part.state_dict(), state[name], **exactly)
            for name, meter in self.meters.items():
                meter.reset(*state["meters"][name])
            self.epochs_done, self.steps_done = state["epoch"], state["step"]
            self.seconds, self.history = state["seconds"], state["history"]
            for rng in state["rng"]:
                torch.Generator().set_state(rng["cpu"])  # an error here, if it is none
            if len(self.history) != self.epochs_done:
                raise ValueError(f"epoch {self.epochs_done} after {len(self.history)}")
        except Exception as error:  # torch raises many types on what it did not write
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: not the checkpoint of such a run ({reason})") from None
        self.restore_rng(state["rng"])
        steps = f" and {self.steps_done} steps" if self.steps_done else ""
        self.print(f"resumed after epoch {self.epochs_done}{steps}")

    def restore_rng(self, states):
        """states: those of all ranks."""
        if len(states) == utils.world_size():
            state = states[utils.rank()]
            torch.set_rng_state(state["cpu"])
            if self.device.type == "cuda" and "cuda" in state:
                torch.cuda.set_rng_state(state["cuda"], self.device)
            return
        text = f"the checkpoint is of {len(states)} processes, this run has {utils.world_size()}"
        if self.args.deterministic:
            raise InputError(f"{text}; --deterministic needs the same number")
        self.print(f"warning: {text}; it goes on, but not exactly as it would have")
        torch.manual_seed(self.args.seed + utils.rank() + 1000 * (1 + self.epochs_done))

    def on_sigterm(self, signum, frame):
        """A cluster takes the machine back: the run saves and ends after this step, and at once if
        that takes so long that another SIGTERM comes (the first may come twice, by torchrun)."""
        if self.sigterm and time.time() - self.sigterm > 5:
            sys.exit(STOPPED)
        self.sigterm = self.sigterm or time.time()

    def stop(self):
        if not utils.rank():
            how = "the same command" + " with --resume" * (not self.args.resume)
            print(f"stopped by SIGTERM; {how} goes on from {self.out}", file=sys.stderr)
        # The first rank to end makes torchrun end the others, so rank 0 has to be done by then.
        self.finish()
        sys.exit(STOPPED)

    # ---------------------------------------------------------------------------- output

    def print(self, *lines):
        if lines and not utils.rank():
            print(*lines, sep="\n", flush=True)

    def write_json(self, name, value):
        if not utils.rank():
            cli.write_json(self.out / name, value)

    def write_log(self, **values):
        if not utils.rank():
            path = self.out / "log.jsonl"
            with cli.named(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values, allow_nan=False) + "\n")

    def print_progress(self):
        """Where the run is, how fast since the last line, and how much time is left."""
        metrics = next(iter(self.meters.values())).result()
        epoch, step, steps = self.epochs_done + 1, self.steps_done, self.steps
        now, done = time.time(), self.epochs_done * steps + step
        (started, steps_before), (printed, step_before) = self.started, self.printed
        speed = (step - step_before) * self.args.batch_size / max(1e-3, now - printed)
        left = (self.args.epochs * steps - done) * (now - started) / (done - steps_before)
        self.printed = now, step
        where = f"epoch {epoch}/{self.args.epochs}  step {step}/{steps}  {format_metrics(metrics)}"
        self.print(f"{where}  {speed:.3g} images/s  {format_seconds(left)} left")
        self.write_log(epoch=epoch, step=step, **metrics, images_per_second=round(speed, 1))


def environment(device):
    """What a result depends on besides its settings."""
    folder = Path(__file__).parent
    commit = subprocess.getoutput(f'git -C "{folder}" describe --always --dirty 2>{os.devnull}')
    versions = {"torch": torch.__version__, "torchvision": version("torchvision")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": commit or None,  # no git, or not a clone
        "world_size": utils.world_size(),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
    }


def processor():
    """The CPU, its vector instructions and the threads, by which PyTorch chooses its kernels: on
    another one they round otherwise."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows the name
    found = cpuinfo.exists() and re.search(r"model name\s*: (.+)", cpuinfo.read_text())
    name = found[1] if found else platform.processor() or platform.machine()
    vectors, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{name}, {vectors}, {threads} threads"


def settings_of(args):
    """What the runs of an identity share: the arguments but for where and how to run."""
    return {name: value for name, value in vars(args).items() if name not in WHERE_AND_HOW}


def check_identity(path, found, wanted):
    """InputError if a file of a run was written under other settings than those of this run."""
    for key, value in wanted.items():
        if key not in found or found[key] != value:
            differ = f"with {key} = {found.get(key)!r}, this run has {value!r}"
            if key == "split":
                differ = "for other images (--data, --limit, or their names) than this run has"
            again = "resume with the same settings or choose another --out"
            raise InputError(f"{path} was written {differ}; {again}")


def find_checkpoint(folder):
    """The checkpoints in the folder of a run, the last one first."""
    return [folder / name for name in CHECKPOINTS if (folder / name).exists()]


def load_checkpoint(folder, warn=print):
    """(path, content) of the last checkpoint in the folder of a run, or of the one before, if the
    last is damaged."""
    paths = find_checkpoint(folder)
    if not paths:
        raise InputError(f"{folder}: no {CHECKPOINTS[0]}")
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
                if damaged := archive.testzip():
                    raise InputError(f"the checksum of {damaged} is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            cli.check_shape(state, CHECKPOINT, "its content")
            return path, state
        except Exception as error:  # torch raises many types on a damaged file
            unknown = f"not as torch.save wrote it: {type(error).__name__}"
            reason = str(error) if isinstance(error, (InputError, OSError)) else unknown
            if path != paths[-1]:
                warn(f"warning: {path} is damaged ({reason}); going on from the one before")
    raise InputError(f"{paths[-1]}: no usable checkpoint ({reason}); remove {folder} to start anew")


def start_log(path, header, epochs_done=0, steps_done=0):
    """log.jsonl: a header, then a line for each print and each epoch. Takes out the lines that a
    resumed run repeats."""
    lines = [json.dumps(header).encode() + b"\n"]
    if (epochs_done or steps_done) and path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        lines = [line for line in lines if is_before(line, epochs_done, steps_done)]
    cli.replace_file(path, lambda file: file.write(b"".join(lines)))


def is_before(line, epochs_done, steps_done):
    """Whether a line of log.jsonl was written, as a whole, before that point of a run."""
    line = line if line.endswith(b"\n") else b"torn"  # by a kill or a full disk
    try:
        line = cli.read_json("a line", {"epoch": (int, None), "step": (int, None)}, line)
    except InputError:
        return False
    return (line["epoch"] or 0, line["step"] or math.inf) <= (epochs_done + 1, steps_done)
