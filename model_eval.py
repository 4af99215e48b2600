"""One fixed architecture as a network: its cell, stacked, with a stem and a head.

`Network` is for DARTS cells, with an auxiliary head if wanted, `NASBenchNetwork` for cells of NAS-Bench-101.
"""

import math

import torch
import torch.nn as nn

from cli import InputError
from genotypes import Genotype, NASBenchCell
from ops import (
    OPS,
    STEMS,
    conv,
    drop_path,
    factorized_reduce,
    reduction_cells,
    relu_conv_bn,
    total_stride,
)


class Cell(nn.Module):
    def __init__(self, genotype, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        self.preprocess0 = (factorized_reduce if reduction_prev else relu_conv_bn)(
            C_prev_prev, C, affine=True
        )
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=True)
        pairs, self.concat = genotype[2:] if reduction else genotype[:2]
        self.inputs = [j for _, j in pairs]
        self.ops = nn.ModuleList(
            OPS[op](C, 2 if reduction and j < 2 else 1, affine=True, copies=1) for op, j in pairs
        )

    def forward(
        self, s0, s1, drop
    ):  # (B, C_prev_prev, H, W), (B, C_prev, H, W), probability to drop a path
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        paths = list(zip(self.ops, self.inputs))
        for pair in zip(paths[::2], paths[1::2]):
            a, b = (op(states[j]) for op, j in pair)
            if drop and self.training:
                a, b = (
                    y if isinstance(op, nn.Identity) else drop_path(y, drop)
                    for (op, _), y in zip(pair, (a, b))
                )
            states.append(a + b)
        return torch.cat([states[j] for j in self.concat], 1)  # (B, len(concat)*C, h, w)


class AuxiliaryHead(nn.Module):
    """A classifier on the features at two thirds of the depth. Elsewhere than at 32 (CIFAR stem) and 224 pixels, the
    map that its last convolution leaves is averaged."""

    def __init__(self, C, num_classes, stem):
        super().__init__()
        last_bn = (
            nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity()
        )  # DARTS leaves it out for ImageNet
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3 if stem == "cifar" else 2, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            last_bn,
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):  # (B, C, 8, 8) or (B, C, 7, 7)
        return self.classifier(self.features(x).mean((2, 3)))  # (B, num_classes)


def check_auxiliary(task, stem, layers):
    """InputError where an auxiliary head has no place."""
    if not task.classifies_inputs:
        raise InputError(
            "--auxiliary is for tasks with one class for each input of the network: cls and rot"
        )
    size = math.ceil(task.input_size / total_stride(stem, layers, task.reductions))
    smallest = {"cifar": 8, "imagenet": 7}[stem]  # for its pool and its 2x2 convolution
    if size < smallest:
        raise InputError(
            f"--auxiliary: at this size the head sees {size} x {size} positions and needs {smallest}; "
            "--auxiliary 0 leaves it out"
        )


class Network(nn.Module):
    """`network(x)`: x (B, in_channels, H, W) -> logits; in training with `auxiliary_classes`, (logits, auxiliary logits).

    `task` says how many channels its inputs have and how many cells reduce the resolution, and builds the head.
    `drop_path`, the probability to drop a path, is set by the training loop.
    """

    def __init__(self, genotype: Genotype, C, layers, stem, task, auxiliary_classes=0):
        super().__init__()
        self.drop_path, self.auxiliary, self.auxiliary_at = 0.0, None, 2 * layers // 3
        self.stem = STEMS[stem](task.in_channels, C)
        C_prev_prev, C_prev, reduction_prev = self.stem.C_out, self.stem.C_out, self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reduction_cells(layers, task.reductions)
            C = 2 * C if reduction else C
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            C_prev_prev, C_prev, reduction_prev = C_prev, len(cell.concat) * C, reduction
            if i == self.auxiliary_at and auxiliary_classes:
                self.auxiliary = AuxiliaryHead(C_prev, auxiliary_classes, stem)
        self.head = task.head(C_prev)

    def forward(self, x):
        s0, s1 = self.stem(x)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if i == self.auxiliary_at and self.training and self.auxiliary:
                logits_aux = self.auxiliary(s1)
        logits = self.head(s1, x.shape[-2:])
        return (logits, logits_aux) if self.training and self.auxiliary else logits


# ---------------------------------------------------------------------------------------------------------------------
# NAS-Bench-101, Ying et al. 2019


def conv_bn_relu(C_in, C_out, kernel, stride=1):
    return nn.Sequential(conv(C_in, C_out, kernel, stride), nn.BatchNorm2d(C_out), nn.ReLU())


NASBENCH_MODULES = {
    "conv3x3-bn-relu": lambda C: conv_bn_relu(C, C, 3),
    "conv1x1-bn-relu": lambda C: conv_bn_relu(C, C, 1),
    "maxpool3x3": lambda C: nn.MaxPool2d(3, stride=1, padding=1),
    "output": lambda C: nn.Identity(),
}


def vertex_channels(cell: NASBenchCell, C_in, C_out):
    """The channels of each vertex. The vertices that lead to the output share its C_out channels, the first of them get one
    more each where that leaves a remainder; any other vertex has as many as the widest vertex that it leads to."""
    matrix, last = cell.matrix, len(cell.ops) - 1
    channels = [C_in] + [0] * (last - 1) + [C_out]
    outer = [v for v in range(1, last) if matrix[v][last]]
    if len(outer) > C_out:
        raise InputError(
            f"--width: {C_out} channels are too few for the {len(outer)} vertices of this cell that share them"
        )
    for k, v in enumerate(outer):
        channels[v] = C_out // len(outer) + (k < C_out % len(outer))
    for v in reversed(range(1, last)):
        if v not in outer:
            channels[v] = max(channels[j] for j in range(v + 1, last) if matrix[v][j])
    return channels


class NASBenchModule(nn.Module):
    """A cell. The input reaches a vertex through a projection; what comes from another vertex is cut to its channels."""

    def __init__(self, cell: NASBenchCell, C_in, C_out):
        super().__init__()
        self.last = len(cell.ops) - 1
        self.channels = vertex_channels(cell, C_in, C_out)
        self.sources = [[i for i in range(1, v) if cell.matrix[i][v]] for v in range(self.last + 1)]
        vertices = list(enumerate(self.channels))[1:]
        self.ops = nn.ModuleDict({str(v): NASBENCH_MODULES[cell.ops[v]](C) for v, C in vertices})
        self.projections = nn.ModuleDict(
            {str(v): conv_bn_relu(C_in, C, 1) for v, C in vertices if cell.matrix[0][v]}
        )

    def forward(self, x):  # (B, C_in, H, W)
        values = [x]
        for v, op in enumerate(self.ops.values(), start=1):
            terms = [values[i][:, : self.channels[v]] for i in self.sources[v]]
            if v == self.last and terms:
                terms = [torch.cat(terms, 1)]
            if str(v) in self.projections:
                terms.append(self.projections[str(v)](x))
            values.append(op(sum(terms[1:], terms[0])))  # (B, channels[v], H, W)
        return values[-1]


class NASBenchNetwork(nn.Module):
    """Three stacks of layers / 3 cells, between them a max pool that halves the size; the width doubles there. Arguments and
    `network(x)` as for `Network`; there is no auxiliary head."""

    def __init__(self, cell: NASBenchCell, C, layers, stem, task):
        super().__init__()
        if layers % 3:
            raise InputError(
                f"--layers {layers}: NAS-Bench-101 cells stand in three stacks, so take a multiple of 3"
            )
        if stem == "cifar":
            blocks = [conv_bn_relu(task.in_channels, C, 3)]
        else:
            blocks = [
                conv_bn_relu(task.in_channels, C // 2, 3, 2),
                conv_bn_relu(C // 2, C, 3, 2),
                conv_bn_relu(C, C, 3, 2),
            ]
        C_in = C
        for i in range(layers):
            if i in reduction_cells(layers, task.reductions):
                blocks.append(nn.MaxPool2d(2))
                C = 2 * C
            blocks.append(NASBenchModule(cell, C_in, C))
            C_in = C
        self.features = nn.Sequential(*blocks)
        self.head = task.head(C_in)

    def forward(self, x):
        return self.head(self.features(x), x.shape[-2:])


def build_network(arch: Genotype | NASBenchCell, C, layers, stem, task, auxiliary_classes=0):
    if isinstance(arch, Genotype):
        return Network(arch, C, layers, stem, task, auxiliary_classes)
    if auxiliary_classes:
        raise InputError(
            "--auxiliary: networks of NAS-Bench-101 cells have no auxiliary head; use --auxiliary 0"
        )
    return NASBenchNetwork(arch, C, layers, stem, task)
