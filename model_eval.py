"""One fixed architecture as a network, cells stacked with a stem and a head: `Network` of DARTS
cells, `NASBenchNetwork` of those of NAS-Bench-101. `features` of both is what their head gets.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from cli import InputError, TrainingError

import ops
from genotypes import Genotype, NASBenchCell, parse_arch, read_result, to_text


class Cell(nn.Module):
    def __init__(self, genotype, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        preprocess = ops.factorized_reduce if reduction_prev else ops.relu_conv_bn
        self.preprocess0 = preprocess(C_prev_prev, C, affine=True)
        self.preprocess1 = ops.relu_conv_bn(C_prev, C, affine=True)
        pairs, self.concat = genotype[2:] if reduction else genotype[:2]
        self.inputs = [j for _, j in pairs]
        self.ops = nn.ModuleList(
            ops.OPS[op](C, 2 if reduction and j < 2 else 1, affine=True, copies=1)
            for op, j in pairs
        )

    def path(self, k, states, drop):
        y = self.ops[k](states[self.inputs[k]])
        drops = drop and self.training and not isinstance(self.ops[k], nn.Identity)
        return ops.drop_path(y, drop) if drops else y

    def forward(self, s0, s1, drop):  # (B, C_prev_prev, H, W), (B, C_prev, H, W), probability
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # and the nodes: (B, C, h, w)
        for k in range(0, len(self.ops), 2):
            states.append(self.path(k, states, drop) + self.path(k + 1, states, drop))
        return torch.cat([states[j] for j in self.concat], 1)  # (B, len(concat)*C, h, w)


class AuxiliaryHead(nn.Module):
    """A classifier on the features at two thirds of the depth. At other sizes than 32 (CIFAR stem)
    and 224 pixels, the map that its last convolution leaves is averaged."""

    def __init__(self, C, num_classes, stem):
        super().__init__()
        pool = nn.AvgPool2d(5, stride=3 if stem == "cifar" else 2, count_include_pad=False)
        first = nn.Conv2d(C, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()
        bn = nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity()  # DARTS: none on ImageNet
        second = nn.Conv2d(128, 768, 2, bias=False), bn, nn.ReLU()
        self.features = nn.Sequential(nn.ReLU(), pool, *first, *second)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):  # (B, C, 8, 8) or (B, C, 7, 7)
        return self.classifier(self.features(x).mean((2, 3)))  # (B, num_classes)


def check_auxiliary(input_size, stem, layers, reductions=2):
    """InputError if inputs of that many pixels leave too few positions for the auxiliary head."""
    size = math.ceil(input_size / ops.total_stride(stem, layers, reductions))
    smallest = {"cifar": 8, "imagenet": 7}[stem]  # for its pool and its 2x2 convolution
    if size < smallest:
        sees = f"at this size the head sees {size} x {size} positions and needs {smallest}"
        raise InputError(f"--auxiliary: {sees}; --auxiliary 0 leaves it out")


class Network(nn.Module):
    """`network(x)`: x (B, in_channels, H, W) -> logits; in training with `auxiliary_classes`,
    (logits, auxiliary logits). `head` and `reductions` are as in `Supernet`. The training loop sets
    `drop_path`, the probability to drop a path."""

    def __init__(
        self, genotype, C, layers, stem, head, in_channels=3, reductions=2, auxiliary_classes=0
    ):
        super().__init__()
        self.drop_path, self.auxiliary, self.auxiliary_at = 0.0, None, 2 * layers // 3
        self.stem = ops.STEMS[stem](in_channels, C)
        C_prev_prev, C_prev, reduction_prev = self.stem.C_out, self.stem.C_out, self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in ops.reduction_cells(layers, reductions)
            C = 2 * C if reduction else C
            self.cells.append(Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev))
            C_prev_prev, C_prev, reduction_prev = C_prev, len(self.cells[i].concat) * C, reduction
            if i == self.auxiliary_at and auxiliary_classes:
                self.auxiliary = AuxiliaryHead(C_prev, auxiliary_classes, stem)
        self.head = head(C_prev)

    def cell_outputs(self, x) -> list:
        """(B, in_channels, H, W) -> the feature maps (B, C, h, w) that the cells give, in turn"""
        outputs, (s0, s1) = [], self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            outputs.append(s1)
        return outputs

    def features(self, x):
        return self.cell_outputs(x)[-1]

    def forward(self, x):
        outputs = self.cell_outputs(x)
        logits = self.head(outputs[-1], x.shape[-2:])
        if self.training and self.auxiliary:
            return logits, self.auxiliary(outputs[self.auxiliary_at])
        return logits


# ------------------------------------------------------------------ NAS-Bench-101, Ying et al. 2019


def conv_bn_relu(C_in, C_out, kernel, stride=1):
    return nn.Sequential(ops.conv(C_in, C_out, kernel, stride), nn.BatchNorm2d(C_out), nn.ReLU())


NASBENCH_OPS = {
    "conv3x3-bn-relu": lambda C: conv_bn_relu(C, C, 3),
    "conv1x1-bn-relu": lambda C: conv_bn_relu(C, C, 1),
    "maxpool3x3": lambda C: nn.MaxPool2d(3, stride=1, padding=1),
    "output": lambda C: nn.Identity(),
}


def vertex_channels(cell: NASBenchCell, C_in, C_out):
    """The channels of each vertex. Those that lead to the output share its C_out channels, with the
    remainder for the first ones; any other has as many as the widest vertex that it leads to."""
    last = len(cell.ops) - 1
    sharing = [v for v in range(1, last) if cell.matrix[v][last]]
    n = len(sharing)
    if n > C_out:
        few = f"{C_out} channels are too few for {n} vertices that share them"
        raise TrainingError(f"--width: {few}")
    channels = [C_in] + [0] * (last - 1) + [C_out]
    for k, v in enumerate(sharing):
        channels[v] = C_out // n + (k < C_out % n)
    for v in reversed(range(1, last)):
        if v not in sharing:
            channels[v] = max(channels[j] for j in range(v + 1, last) if cell.matrix[v][j])
    return channels


class NASBenchModule(nn.Module):
    """A cell. A vertex sums its inputs: the cell's input, projected, and other vertices, cut to its
    channels. The output has the other vertices side by side."""

    def __init__(self, cell: NASBenchCell, C_in, C_out):
        super().__init__()
        self.matrix, self.channels = cell.matrix, vertex_channels(cell, C_in, C_out)
        vertices = range(1, len(cell.ops))
        self.ops = nn.ModuleList(NASBENCH_OPS[cell.ops[v]](self.channels[v]) for v in vertices)
        self.projections = nn.ModuleDict(
            {str(v): conv_bn_relu(C_in, self.channels[v], 1) for v in vertices if cell.matrix[0][v]}
        )

    def forward(self, x):  # (B, C_in, H, W)
        outputs = [x]
        for v, op in enumerate(self.ops, start=1):
            inputs = [outputs[i][:, : self.channels[v]] for i in range(1, v) if self.matrix[i][v]]
            if v == len(self.ops) and inputs:
                inputs = [torch.cat(inputs, 1)]
            if self.matrix[0][v]:
                inputs.append(self.projections[str(v)](x))
            outputs.append(op(sum(inputs[1:], inputs[0])))  # (B, channels[v], H, W)
        return outputs[-1]


class NASBenchNetwork(nn.Module):
    """Three stacks of layers / 3 cells, between them a max pool that halves the size; the width
    doubles there. Arguments and `network(x)` as for `Network`, but there is no auxiliary head."""

    def __init__(self, cell: NASBenchCell, C, layers, stem, head, in_channels=3, reductions=2):
        super().__init__()
        if layers % 3:
            raise InputError(f"--layers {layers}: three stacks of cells need a multiple of 3")
        widths = [in_channels, C] if stem == "cifar" else [in_channels, C // 2, C, C]
        stride = 1 if stem == "cifar" else 2
        blocks = [conv_bn_relu(a, b, 3, stride) for a, b in zip(widths, widths[1:])]
        for i in range(layers):
            C_in = C
            if i in ops.reduction_cells(layers, reductions):
                blocks.append(nn.MaxPool2d(2))
                C = 2 * C
            blocks.append(NASBenchModule(cell, C_in, C))
        self.features = nn.Sequential(*blocks)
        self.head = head(C)

    def forward(self, x):
        return self.head(self.features(x), x.shape[-2:])


def build_network(arch, width, layers, stem, head=None, num_classes=None, **options):
    """The network of a Genotype or a NASBenchCell; without a head of one's own, a classifier."""
    head = head or partial(ops.PooledHead, num_classes=num_classes)
    if isinstance(arch, Genotype):
        return Network(arch, width, layers, stem, head, **options)
    if options.pop("auxiliary_classes", 0):
        raise InputError("--auxiliary: NAS-Bench-101 networks have no such head; use --auxiliary 0")
    return NASBenchNetwork(arch, width, layers, stem, head, **options)


def load_network(folder, device="cpu"):
    """(network, task) of a finished run of train.py, to evaluate: the network of its last epoch,
    without an auxiliary head. The images that it was trained on need not be there."""
    import pretext  # here, as networks know no tasks and no runs
    import runs
    from image_files import DataSet

    where = Path(folder) / "result.json"
    result, (path, checkpoint) = read_result(where), runs.load_checkpoint(Path(folder))
    arch = parse_arch(result, where)
    identity = result["identity"] | {"genotype": to_text(arch).replace("\n", " ")}
    runs.check_identity(where, identity, checkpoint["identity"])
    try:
        if checkpoint["epoch"] != len(result["epochs"]):
            raise ValueError(f"that of epoch {checkpoint['epoch']} and not of the last")
        saved, known = argparse.Namespace(**identity), result["images"]
        images = DataSet([], [], known["classes"], masks=[])
        images.mask_classes, images.mean, images.std = images.classes, known["mean"], known["std"]
        task = pretext.make_task(saved.task, images, saved.size, saved.stem, saved.layers, device)
        shape = saved.width, saved.layers, saved.stem
        network = build_network(arch, *shape, **task.network_args)
        weights = checkpoint["network"].items()
        network.load_state_dict({k: v for k, v in weights if not k.startswith("auxiliary.")})
    except Exception as error:  # torch raises many types on what it did not write
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not the network of its result.json ({reason})") from None
    return network.to(device, memory_format=torch.channels_last).eval(), task
