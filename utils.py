"""What both training scripts share and no task or model needs to know: set-up, ranks, evaluation, logs, checkpoints."""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from cli import InputError, at_least, format_metrics, format_seconds, replace_file

# ---------------------------------------------------------------------------------------------------------------------
# Command line and set-up


def add_run_arguments(group):
    """The options of a run that are not about data, model or optimiser."""
    group.add_argument("--out", metavar="DIR", help="where to write (default: a name under runs/)")
    group.add_argument(
        "--seed",
        type=at_least(0, int, 2**32),
        default=0,
        help="of weights, data and the halves of a search",
    )
    group.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 ...",
    )
    group.add_argument(
        "--workers",
        type=at_least(0, int),
        metavar="N",
        help="processes that decode images, of each rank (default: its cores, at most 8)",
    )
    group.add_argument(
        "--deterministic", action="store_true", help="reproducible on a GPU as well; slower"
    )
    group.add_argument(
        "--amp",
        choices=["bf16", "fp16"],
        help="mixed precision; fp16 with scaled losses, for older GPUs",
    )
    group.add_argument(
        "--sync_bn",
        action="store_true",
        help="BN statistics over the images of all ranks (GPUs only)",
    )
    group.add_argument(
        "--resume", action="store_true", help="continue the run in --out; start it if there is none"
    )
    group.add_argument(
        "--save_every",
        type=at_least(0, int),
        metavar="STEPS",
        help="save within an epoch, too; 0: do not",
    )
    group.add_argument(
        "--print_every",
        type=at_least(1, int),
        default=50,
        metavar="STEPS",
        help="steps between two lines",
    )


def fill_defaults(args, defaults):
    """Gives the options that were not on the command line their values from a table."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def setup(args, distributed=True):
    """Joins the other ranks if torchrun started us, seeds everything and returns the device."""
    world = int(os.environ.get("WORLD_SIZE", 1)) if distributed else 1
    device = open_device(
        f"cuda:{os.environ['LOCAL_RANK']}" if world > 1 and args.device == "cuda" else args.device
    )
    if args.sync_bn and device.type == "cpu":
        raise InputError("--sync_bn: PyTorch has synchronised BN for GPUs only")
    if world > 1 and not dist.is_initialized():
        join_ranks("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        if rank():
            sys.stdout = open(os.devnull, "w")  # rank 0 speaks for all
    # torchrun --max_restarts: go on where the ranks stopped. On several nodes not all count the same restarts.
    args.resume = any(
        gather(args.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
    )
    signal.signal(signal.SIGTERM, ask_to_stop)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def open_device(name):
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def join_ranks(backend):
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend)
        return
    # On one machine, where all ranks count the same restarts: torchrun keeps its store when it starts the ranks
    # again, with the addresses of the dead ones in it (github.com/pytorch/pytorch/issues/135712).
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def check_batch_size(batch_size, accumulate=1):
    """InputError if the ranks, and the parts of --accumulate, cannot share a batch evenly."""
    parts = accumulate * world_size()
    if batch_size % parts or batch_size < 2 * parts:  # BN over a single value is undefined
        raise InputError(
            f"--batch_size {batch_size}: needs {parts} equal parts (processes x --accumulate) of at least 2"
        )


def environment(device):
    """What a result depends on besides its arguments."""
    folder = shlex.quote(str(Path(__file__).parent))
    commit = (
        subprocess.getoutput(f"git -C {folder} describe --always --dirty 2>/dev/null") or None
    )  # no git, or not a clone
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": importlib.metadata.version("torchvision"),
        },
        "git_commit": commit,
        "world_size": world_size(),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def cosine_lr(base, epoch, epochs, warmup_epochs=0):
    """The learning rate of an epoch: half a cosine from base to 0 over `epochs`, times a factor that grows linearly from 0.1
    to 1 during warm-up. Epochs count from 0."""
    warmup = 0.1 + 0.9 * epoch / warmup_epochs if epoch < warmup_epochs else 1
    return 0.5 * base * (1 + math.cos(math.pi * epoch / epochs)) * warmup


# ---------------------------------------------------------------------------------------------------------------------
# Ranks: the processes that torchrun started, one for each GPU; one process without torchrun is the only rank


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value) -> list:
    """The values of all ranks, in their order, on all ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average(tensors):
    """Averages each tensor over the ranks, in place and all in one message; None is left out. After a backward pass this
    does the work of DistributedDataParallel, for weights and alphas alike and for any parameters left without gradients."""
    tensors = [tensor for tensor in tensors if tensor is not None]
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(
        tensors, (flat / world_size()).split([tensor.numel() for tensor in tensors])
    ):
        tensor.copy_(part.view_as(tensor))


def average_gradients(parameters):
    average([p.grad for p in parameters])


def average_statistics(network):
    """The running statistics of BN, which each rank has of its own images."""
    average([buffer for buffer in network.buffers() if buffer.is_floating_point()])


def check_same(what, value):
    """InputError if the ranks found different things on their disks."""
    values = gather(value)
    if any(other != values[0] for other in values):
        raise InputError(
            f"the processes disagree on {what} ({values}): both must be the same for all of them"
        )


def count_unreadable(data):
    return len(set().union(*gather(data.unreadable)))


def check_equal(name, tensor):
    """RuntimeError if the ranks hold different values of what they must agree on."""
    first, *others = gather(tensor.detach().cpu())
    for k, other in enumerate(others, start=1):
        if not torch.equal(first, other):
            raise RuntimeError(
                f"{name} of rank 0 and rank {k} differ by up to {(first - other).abs().max():.3g}"
            )


def finish():
    """At the end of a run that went well."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


STOPPED = 75  # the exit code EX_TEMPFAIL: start it again
stop_asked = False


def ask_to_stop(signum, frame):
    global stop_asked
    stop_asked = True


def stop_requested():
    """Whether SIGTERM (a cluster takes the machine back) reached any rank; all ranks get the same answer."""
    flag = torch.tensor(stop_asked, dtype=torch.int32)
    if dist.is_initialized():
        dist.all_reduce(flag, dist.ReduceOp.MAX)  # on the CPU: a GPU need not wait for it
    return bool(flag)


def stop(out):
    if not rank():
        print(
            f"stopped by SIGTERM; the same command with --resume goes on from {out / 'checkpoint.pt'}",
            file=sys.stderr,
        )
    finish()  # the first rank to end makes torchrun end the others, so rank 0 has to be done with the checkpoint
    sys.exit(STOPPED)


# ---------------------------------------------------------------------------------------------------------------------
# Precision, counts, averages, evaluation


def precision(device, amp):
    """(autocast context, gradient scaler) of --amp; without it they do nothing."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    return torch.autocast(device.type, dtype, enabled=amp is not None), scaler


def count_params(module):
    return sum(p.numel() for p in module.parameters())


def count_macs(build, task):
    """Multiply-accumulates of the convolutions and linear layers for one target of the task (a jigsaw has several tiles).
    `build` makes the network, on the meta device: no memory, no time."""
    shape = (task.inputs_per_target, task.in_channels, task.input_size, task.input_size)
    with torch.device("meta"):
        network, x = build().eval(), torch.empty(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() // 2


class Meter:
    """Sums loss and scores on the device; the host waits for them only in `result`, where the ranks' sums are added."""

    def __init__(self, task, loss=0.0, scores=0):
        """loss, scores: the `state` of a meter to go on from, whose sums are those of all ranks."""
        self.task = task
        self.loss, self.scores = (0.0, 0) if rank() else (loss, scores)

    def update(self, loss, logits, targets):
        scores = self.task.score(logits.detach(), targets)
        self.loss = self.loss + loss.detach().double() * scores[-1]
        self.scores = torch.as_tensor(self.scores, device=scores.device) + scores

    def state(self):
        """(loss, scores) so far, of all ranks."""
        mine = torch.as_tensor(self.loss).cpu(), torch.as_tensor(self.scores).cpu()
        return [sum(values) for values in zip(*gather(mine))]

    def result(self):
        """{"loss": mean, and what the task measures}"""
        loss, scores = self.state()
        return {"loss": (loss / scores[-1]).item(), **self.task.metrics(scores)}


@torch.inference_mode()
def evaluate(network, task, batches, autocast, *alphas) -> dict:
    """Loss and metrics of a network (or of a supernet at its alphas) in evaluation mode, each image once."""
    average_statistics(network)
    network.eval()
    meter = Meter(task)
    for batch in batches:
        x, y = task.prepare(*batch, train=False)
        with autocast:
            logits = network(x, *alphas)
            loss = task.loss(logits, y)
        meter.update(loss, logits, y)
    return meter.result()


def finite(result, epoch, step, task):
    """The result of a meter or evaluation up to this step, or the end of the run where the loss is not a number."""
    if not math.isfinite(result["loss"]):
        raise InputError(
            f"the loss is {result['loss']} by epoch {epoch}, step {step}, task {task}: try a smaller --lr"
        )
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Files: all but the lines of log.jsonl are written under another name and renamed, so that a kill leaves the old or the new


def save_checkpoint(out, state, device):
    """`state`: state dicts and plain values. The random states of torch of all ranks are added; augmentation uses them."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    state = {**state, "rng": gather({"cpu": torch.get_rng_state(), **cuda})}
    if not rank():
        replace_file(out / "checkpoint.pt", lambda file: torch.save(state, file))


PROGRESS = ("epoch", "step", "seconds", "history", "meters")  # how far a checkpoint is


def save_run(out, device, identity, parts, how_far, **more):
    """A checkpoint of the `parts` of a run, {name: what has a state dict}, of which the first is the network; `how_far` has
    the values of PROGRESS, `more` holds tensors and plain values."""
    average_statistics(next(iter(parts.values())))
    more |= {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(out, {"identity": identity, **dict(zip(PROGRESS, how_far)), **more}, device)


def resume(args, out, device, identity, parts):
    """Loads the parts from the checkpoint, if there is one to go on with, and returns all that it holds."""
    state = dict(zip(PROGRESS, (0, 0, 0.0, [], None)))
    if args.resume and (out / "checkpoint.pt").exists():
        state = load_checkpoint(out, identity)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        restore_rng(state, device, args)
        print(
            f"resumed after epoch {state['epoch']}"
            + (f" and {state['step']} steps" if state["step"] else "")
        )
    how_far = state["epoch"], state["step"], identity["size"], identity["split"]
    check_same("the checkpoint in --out and the images in --data", how_far)
    return state


def load_checkpoint(out, identity):
    """The checkpoint of a run; `identity` holds what must be as it was when it was written."""
    path = out / "checkpoint.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["identity"]
    except Exception as error:  # torch raises many types on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a usable checkpoint ({reason}); remove {out} to start anew"
        ) from None
    check_identity(path, found, identity)
    return state


def check_identity(path, found, identity):
    """InputError if a file of a run was written under other settings than those of this run."""
    for key in identity:
        if key not in found or found[key] != identity[key]:
            raise InputError(
                f"{path} was written with {key} = {found.get(key)}, this run has {identity[key]}; "
                "resume with the same settings or choose another --out"
            )


def restore_rng(state, device, args):
    if len(state["rng"]) != world_size():
        text = f"the checkpoint in {args.out} is of {len(state['rng'])} processes, this run has {world_size()}"
        if args.deterministic:
            raise InputError(f"{text}; --deterministic needs the same number")
        print(f"warning: {text}; it goes on, but not exactly as it would have")
        torch.manual_seed(args.seed + rank() + 1000 * (1 + state["epoch"]))
        return
    rng = state["rng"][rank()]
    torch.set_rng_state(rng["cpu"])
    if device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], device)


def open_run(args, default_name):
    """The folder of a run, not made yet; one that holds a run already is only for --resume."""
    out = Path(args.out or f"runs/{default_name}")
    if not args.resume and ((out / "checkpoint.pt").exists() or (out / "log.jsonl").exists()):
        raise InputError(f"{out} holds a run: --resume goes on with it, --out names another place")
    gather(None)  # all ranks have looked before rank 0 writes
    return out


WHERE_AND_HOW = {
    "arch",
    "out",
    "resume",
    "device",
    "print_every",
    "data",
    "download",
    "workers",
    "deterministic",
    "accumulate",
    "save_every",
    "compile",
}


def identity_of(args, **more):
    """What two runs must agree on to be the same run: all arguments but those that say where and how to run."""
    return {k: v for k, v in vars(args).items() if k not in WHERE_AND_HOW} | more


class Log:
    """log.jsonl: a header, a line for each print and each epoch. Lines that a resumed run repeats are taken out first. With
    TensorBoard installed, also its events beside it: the numbers of each epoch."""

    events = None

    def __init__(self, out, header, epochs_done, steps_done):
        def is_before(line):
            return (line.get("epoch", 0), line.get("step", math.inf)) <= (
                epochs_done + 1,
                steps_done,
            )

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: cannot make this folder ({error.strerror})") from None
        self.path = out / "log.jsonl"
        lines = [json.dumps(header) + "\n"]
        if (epochs_done or steps_done) and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [
                line for line in lines if line.endswith("\n") and is_before(json.loads(line))
            ]  # a kill may tear one
        if not rank():
            replace_file(self.path, lambda file: file.write("".join(lines).encode()))
        if Log.events:  # of the training before in a sweep
            Log.events.close()
        try:
            from torch.utils.tensorboard import (
                SummaryWriter,  # here, as it takes seconds and --help needs none
            )
        except ImportError:
            SummaryWriter = None
        Log.events = (
            None if rank() or not SummaryWriter else SummaryWriter(out, purge_step=epochs_done + 1)
        )

    def write(self, **values):
        if rank():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")
        if Log.events and "step" not in values:
            for name, value in values.items():
                for k, number in enumerate(value) if isinstance(value, list) else [("", value)]:
                    if isinstance(number, (int, float)):
                        Log.events.add_scalar(f"{name}{k}", number, values["epoch"])
            Log.events.flush()


class Progress:
    """A line every --print_every steps: where the run is, how fast, how much time is left. Epochs and steps count from 1."""

    def __init__(self, log, args, steps, steps_done):
        self.log, self.every, self.epochs, self.batch_size = (
            log,
            args.print_every,
            args.epochs,
            args.batch_size,
        )
        self.steps, self.start, self.start_step = steps, time.time(), steps_done

    def step(self, epoch, step, values):
        """`values()` gives the numbers to print, a dict; it is called only when it is time."""
        if step % self.every and step != self.steps:
            return
        done = (epoch - 1) * self.steps + step
        rate = (done - self.start_step) / (time.time() - self.start)
        left = (self.epochs * self.steps - done) / rate
        result = values()
        print(
            f"epoch {epoch}/{self.epochs}  step {step}/{self.steps}  {format_metrics(result)}  "
            f"{rate * self.batch_size:.3g} images/s  {format_seconds(left)} left",
            flush=True,
        )
        self.log.write(
            epoch=epoch, step=step, **result, images_per_second=round(rate * self.batch_size, 1)
        )
