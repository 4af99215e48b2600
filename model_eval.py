"""One fixed architecture as a network: a genotype, stacked, with a stem, a head and perhaps an auxiliary head."""

import math

import torch
import torch.nn as nn

from errors import InputError
from genotypes import Genotype
from ops import OPS, STEMS, drop_path, factorized_reduce, reduction_cells, relu_conv_bn, total_stride


class Cell(nn.Module):
    def __init__(self, genotype, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        if reduction_prev:
            self.preprocess0 = factorized_reduce(C_prev_prev, C, affine=True)
        else:
            self.preprocess0 = relu_conv_bn(C_prev_prev, C, affine=True)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=True)
        pairs = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.inputs = [j for _, j in pairs]
        self.ops = nn.ModuleList(OPS[op](C, 2 if reduction and j < 2 else 1, affine=True, copies=1) for op, j in pairs)

    def forward(self, s0, s1, drop):  # (B, C_prev_prev, H, W), (B, C_prev, H, W), probability to drop a path
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        paths = list(zip(self.ops, self.inputs))
        for pair in zip(paths[::2], paths[1::2]):
            a, b = (op(states[j]) for op, j in pair)
            if drop and self.training:
                a, b = (y if isinstance(op, nn.Identity) else drop_path(y, drop) for (op, _), y in zip(pair, (a, b)))
            states.append(a + b)
        return torch.cat([states[j] for j in self.concat], 1)  # (B, len(concat)*C, h, w)


class AuxiliaryHead(nn.Module):
    """A classifier on the features at two thirds of the depth. Elsewhere than at 32 (CIFAR stem) and 224 pixels, the
    map that its last convolution leaves is averaged."""

    def __init__(self, C, num_classes, stem):
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3 if stem == "cifar" else 2, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity(),  # DARTS leaves it out for ImageNet
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):  # (B, C, 8, 8) or (B, C, 7, 7)
        return self.classifier(self.features(x).mean((2, 3)))  # (B, num_classes)


def check_auxiliary(task, stem, layers):
    """InputError where an auxiliary head has no place."""
    if not task.classifies_inputs:
        raise InputError("--auxiliary is for tasks with one class for each input of the network: cls and rot")
    size = math.ceil(task.input_size / total_stride(stem, layers))
    smallest = {"cifar": 8, "imagenet": 7}[stem]  # for its pool and its 2x2 convolution
    if size < smallest:
        raise InputError(
            f"--auxiliary: at this size the head sees {size} x {size} positions and needs {smallest}; --auxiliary 0 "
            "leaves it out"
        )


class Network(nn.Module):
    """`network(x)`: x (B, in_channels, H, W) -> logits; in training with `auxiliary_classes`, (logits, auxiliary logits).

    `make_head(C)` builds the task's head for C channels; it is called with the features and the input's (H, W).
    `drop_path`, the probability to drop a path, is set by the training loop.
    """

    def __init__(self, genotype: Genotype, C, layers, stem, in_channels, make_head, auxiliary_classes=0):
        super().__init__()
        self.drop_path = 0.0
        self.stem = STEMS[stem](in_channels, C)
        C_prev_prev = C_prev = self.stem.C_out
        reduction_prev = self.stem.reduces
        self.cells = nn.ModuleList()
        self.auxiliary_at = 2 * layers // 3
        self.auxiliary = None
        for i in range(layers):
            reduction = i in reduction_cells(layers)
            C = 2 * C if reduction else C
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            C_prev_prev, C_prev, reduction_prev = C_prev, len(cell.concat) * C, reduction
            if i == self.auxiliary_at and auxiliary_classes:
                self.auxiliary = AuxiliaryHead(C_prev, auxiliary_classes, stem)
        self.head = make_head(C_prev)

    def forward(self, x):
        s0, s1 = self.stem(x)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if i == self.auxiliary_at and self.training and self.auxiliary:
                logits_aux = self.auxiliary(s1)
        logits = self.head(s1, x.shape[-2:])
        return (logits, logits_aux) if self.training and self.auxiliary else logits
