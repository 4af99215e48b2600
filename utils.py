"""What search.py and train.py share and what knows no task and no model by name: ranks, precision,
meters, evaluation, counts, the learning rate."""

import copy
import math
import os
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from cli import InputError
from torch.utils.flop_counter import FlopCounterMode

PATIENCE = timedelta(minutes=10)  # how long a rank waits for another one
TO_JOIN = timedelta(minutes=1)  # and for torchrun on the same machine
progress = "at the start"  # where a run is, for the message of a rank that waited in vain

# ------------------------------------------------------------------------------------------- Set-up


def setup(args, distributed=True):
    """Joins the other ranks if torchrun started us, seeds torch and returns the device. Without
    `distributed` a process under torchrun works alone."""
    world = started_ranks() if distributed else 1
    name = args.device
    if world > 1 and name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = open_device(name)
    if args.sync_bn and device.type == "cpu":
        raise InputError("--sync_bn: PyTorch has synchronised BN for GPUs only")
    if distributed and "WORLD_SIZE" in os.environ:
        end_with_parent()
    if world > 1 and not dist.is_initialized():
        join_ranks("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if distributed:  # torchrun --max_restarts; on several nodes not all count the same restarts
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        (args.resume,) = any_rank(args.resume or restarted)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def started_ranks():
    """How many processes torchrun started. InputError if another launcher started several."""
    if "WORLD_SIZE" not in os.environ:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks != "1" and "SLURM_PROCID" in os.environ:
            raise InputError(f"srun started {tasks} tasks of this: start one a node, with torchrun")
        return 1
    names = "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    if missing := [name for name in names if not os.environ.get(name)]:
        raise InputError(f"WORLD_SIZE is set, {', '.join(missing)} not: start it with torchrun")
    return int(os.environ["WORLD_SIZE"])


def end_with_parent():
    """Ends this process soon after torchrun has gone, which when killed leaves its ranks behind."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=PATIENCE)
        return
    # On one machine, where all ranks count the same restarts: torchrun keeps its store when it
    # starts the ranks again, with the addresses of the dead ones in it
    # (github.com/pytorch/pytorch/issues/135712).
    with waiting():  # torchrun, which has the store, may have been killed since
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TO_JOIN))
    store.set_timeout(PATIENCE)
    store = dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    ranks = {"rank": rank, "world_size": world_size}
    dist.init_process_group(backend, store=store, timeout=PATIENCE, **ranks)


def check_batch_size(batch_size, images, accumulate=1):
    """InputError unless ranks and the parts of --accumulate can share a batch evenly."""
    parts = accumulate * world_size()
    if batch_size % parts or batch_size < 2 * parts:  # BN over a single value is undefined
        why = f"needs {parts} equal parts (processes x --accumulate) of at least 2"
        raise InputError(f"--batch_size {batch_size}: {why}")
    if batch_size > images:
        raise InputError(f"--batch_size {batch_size}: there are {images} images to train on")


def precision(device, amp):
    """(autocast context, gradient scaler) of --amp; without it they do nothing."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    return torch.autocast(device.type, dtype, enabled=amp is not None), scaler


def place(network, device, sync_bn=False):
    """The network on the device, in the memory format that suits convolutions."""
    if sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        for module in network.modules():
            if isinstance(module, torch.nn.SyncBatchNorm):  # a supernet's BN does not count batches
                module.num_batches_tracked = torch.tensor(0)
    return network.to(device, memory_format=torch.channels_last)


def choose_layout(network, autocast, targets, input_shape, *alphas):
    """On a GPU: the network goes on in the memory format in which a copy takes its steps faster, on
    so many targets for all ranks; returns a line about it. Grouped convolutions in channels_last
    are slow with some GPUs and versions of cuDNN (github.com/pytorch/pytorch/issues/34977)."""
    device, seconds = next(network.parameters()).device, {}
    tiles, *shape = input_shape
    x = torch.ones(tiles * targets // world_size(), *shape, device=device)
    for layout in (torch.channels_last, torch.contiguous_format):
        trial = copy.deepcopy(network).to(memory_format=layout)
        for step in range(8):
            if step == 3:  # three to warm up
                torch.cuda.synchronize()
                start = time.time()
            with autocast:
                logits = trial(x, *alphas)
            (logits[0] if isinstance(logits, tuple) else logits).sum().backward()
        torch.cuda.synchronize()
        seconds[layout] = (time.time() - start) / 5
    network.to(memory_format=min(seconds, key=seconds.get))
    times = ", ".join(f"{s * 1e3:.1f} ms a step in {layout}" for layout, s in seconds.items())
    return f"memory format: {times}"


def cosine_lr(base, epoch, epochs, warmup_epochs=0):
    """The learning rate of an epoch, which count from 0: half a cosine from base to 0 over
    `epochs`, times a factor that grows linearly from 0.1 to 1 during warm-up."""
    warmup = 0.1 + 0.9 * epoch / warmup_epochs if epoch < warmup_epochs else 1
    return 0.5 * base * (1 + math.cos(math.pi * epoch / epochs)) * warmup


# --------------------------- Ranks: torchrun's processes, one for each GPU; without it, one process


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def waiting():
    """Around a message between ranks, for which each waits PATIENCE."""
    try:
        yield
    except RuntimeError as error:
        where = f"waits for the other ranks {progress}"
        raise InputError(f"{where} in vain: one ended or hangs ({error})") from None


def gather(value) -> list:
    """The values of all ranks, in their order, on all ranks, which all call this."""
    values = [value] * world_size()
    if len(values) > 1:
        with waiting():
            dist.all_gather_object(values, value)
    return values


def any_rank(*flags) -> list:
    """Whether each is true on any rank, which all call this; on the CPU, so no GPU need wait."""
    flags = torch.tensor(flags, dtype=torch.int32)
    if world_size() > 1:
        with waiting():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
    return flags.bool().tolist()


@torch.no_grad()
def average(tensors):
    """Averages each tensor over the ranks, in place and all in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with waiting():
        dist.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, (flat / world_size()).split(sizes)):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters):
    """After a backward pass this does the work of DistributedDataParallel, for weights and alphas
    alike and for any parameters left without gradients. All ranks call it."""
    average([p.grad for p in parameters if p.grad is not None])


def average_statistics(network):
    """The running statistics of BN, which each rank has of its own images. All ranks call it."""
    average([buffer for buffer in network.buffers() if buffer.is_floating_point()])


def count_distinct(items):
    """How many different items the ranks have together. All ranks call it."""
    return len(set().union(*gather(items)))


def check_same(what, value):
    """InputError if the ranks found different things on their disks. All ranks call it."""
    values = gather(value)
    if any(other != values[0] for other in values):
        raise InputError(f"the processes disagree on {what}: {values}")


def check_equal(name, tensor):
    """RuntimeError if the ranks hold different values of what they compute alike. All call it."""
    first, *others = gather(tensor.detach().cpu())
    if not all(torch.equal(first, other) for other in others):
        raise RuntimeError(f"the ranks hold different {name}")


# ----------------------------------------------------------------------- Counts, meters, evaluation


def count(build, input_shape):
    """Parameters, and multiply-accumulates of convolutions and linear layers for an input of that
    shape. `build` makes the network, on the meta device: no memory, no time."""
    with torch.device("meta"):
        network, x = build().eval(), torch.empty(input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


class Meter:
    """Sums loss and scores of a task on the device; nobody waits for them before `state`."""

    def __init__(self, task):
        self.task = task
        self.reset()

    def reset(self, loss=0.0, scores=0):
        """loss, scores: the `state` to go on from, which holds the sums of all ranks."""
        if rank():
            loss, scores = 0.0, 0
        self.loss = torch.as_tensor(loss, dtype=torch.float64)
        self.scores = torch.as_tensor(scores)

    def update(self, loss, logits, targets):
        scores = self.task.score(logits.detach(), targets)
        self.loss = self.loss + loss.detach().double() * scores[-1]
        self.scores = self.scores.to(scores.device) + scores

    def state(self):
        """[loss, scores], the sums so far of all ranks, which all call this."""
        return [sum(sums) for sums in zip(*gather((self.loss.cpu(), self.scores.cpu())))]

    def result(self):
        """{"loss": mean, and what the task measures}, {} before any update. All ranks call it."""
        loss, scores = self.state()
        if not scores.any():
            return {}
        return {"loss": (loss / scores[-1]).item(), **self.task.metrics(scores)}


@torch.no_grad()
def precise_bn(network, batches):
    """Re-estimates the statistics of BN on inputs of equal size: those of all of them together, of
    all ranks. (update_bn averages the variances of the batches, which leaves out how far their
    means are apart.) All ranks call it."""
    moments, hooks, count = {}, [], 0  # {BN: sums over the batches of mean and mean square}

    def add(bn, inputs):
        var, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
        sums = torch.stack([mean.double(), var.double() + mean.double() ** 2])  # (2, C)
        moments[bn] = moments.get(bn, 0) + sums

    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            hooks.append(module.register_forward_pre_hook(add))
    network.train()
    for x in batches:
        network(x)
        count += 1
    for hook in hooks:
        hook.remove()
    average(list(moments.values()))
    for bn, sums in moments.items():
        mean, square = sums / count
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(square - mean**2)


@torch.inference_mode()
def evaluate(network, task, batches, autocast, *alphas) -> dict:
    """Loss and metrics of a network (or of a supernet at its alphas) in evaluation mode, each image
    once. All ranks call it, each with its share of the batches."""
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
