"""The supernet as DARTS wrote it down: a module for every edge and op, a loop over edges. Slow and
simple, it is what model_search.py must compute; `copy_weights` gives both the same weights."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import NODES, PRIMITIVES
from model_search import READERS
from ops import OPS, STEMS, DepthwiseConv, factorized_reduce, reduction_cells, relu_conv_bn


class MixedOp(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.ops = nn.ModuleList()
        for name in PRIMITIVES:
            op = OPS[name](C, stride, affine=False, copies=1)
            self.ops.append(
                nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if "pool" in name else op
            )

    def forward(self, x, weights):  # (B, C, H, W), (8,)
        return sum(w * op(x) for w, op in zip(weights, self.ops))


class PartialEdge(nn.Module):
    """The first C/K channels through the mixed op, the others by it, all of them shuffled."""

    def __init__(self, C, stride, K):
        super().__init__()
        self.stride, self.K = stride, K
        self.mixed = MixedOp(C // K, stride)
        self.ops = self.mixed.ops

    def forward(self, x, weights):
        B, C, c = len(x), x.shape[1], x.shape[1] // self.K
        passed = x[:, c:]
        if self.stride == 2:
            passed = F.max_pool2d(passed, 2, 2, ceil_mode=True)
        y = torch.cat([self.mixed(x[:, :c], weights), passed], 1)
        return y.reshape(B, self.K, c, *y.shape[2:]).transpose(1, 2).reshape(B, C, *y.shape[2:])


class EdgeCell(nn.Module):
    def __init__(self, C_prev_prev, C_prev, C, reduction, reduction_prev, partial):
        super().__init__()
        self.reduction = reduction
        preprocess = factorized_reduce if reduction_prev else relu_conv_bn
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=False)
        self.edges = nn.ModuleDict()
        for node in range(2, 2 + NODES):
            for j in range(node):
                stride = 2 if reduction and j < 2 else 1
                edge = PartialEdge(C, stride, partial) if partial > 1 else MixedOp(C, stride)
                self.edges[f"{j}->{node}"] = edge

    def forward(self, s0, s1, weights, betas=None):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        row = 0
        for node in range(2, 2 + NODES):
            total = 0
            strengths = [1] * node
            if betas is not None:
                strengths = F.softmax(betas[row : row + node], dim=0)
            for j in range(node):
                y = self.edges[f"{j}->{node}"](states[j], weights[row])
                total = total + strengths[j] * y
                row += 1
            states.append(total)
        return torch.cat(states[2:], 1)


class EdgeSupernet(nn.Module):
    def __init__(self, C, layers, stem, head, in_channels=3, reductions=2, partial=1):
        super().__init__()
        self.stem = STEMS[stem](in_channels, C)
        C_prev_prev, C_prev, reduction_prev = self.stem.C_out, self.stem.C_out, self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reduction_cells(layers, reductions)
            C = 2 * C if reduction else C
            self.cells.append(EdgeCell(C_prev_prev, C_prev, C, reduction, reduction_prev, partial))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.head = head(C_prev)
        for module in self.modules():
            if isinstance(module, DepthwiseConv):
                module.__class__ = nn.Conv2d  # with PyTorch's own gradients

    def forward(self, x, alphas, betas=None):
        weights = F.softmax(alphas, dim=-1)
        s0, s1 = self.stem(x)
        for cell in self.cells:
            i = int(cell.reduction)
            s0, s1 = s1, cell(s0, s1, weights[i], None if betas is None else betas[i])
        return self.head(s1, x.shape[-2:])


def paired_parameters(supernet, oracle):
    """[(parameter of the supernet, the oracle's parameters that are its copies)], each once."""
    inside = []
    for cell, edge_cell in zip(supernet.cells, oracle.cells):
        for j, (source, readers) in enumerate(zip(cell.sources, READERS)):
            for name, op in source.per_edge.items():
                twins = [
                    edge_cell.edges[f"{j}->{node}"].ops[PRIMITIVES.index(name)] for node in readers
                ]
                twin_params = zip(*(twin.parameters() for twin in twins))
                inside += list(zip(op.parameters(), map(list, twin_params)))
    paired = {id(p) for p, _ in inside}
    rest = [p for p in supernet.parameters() if id(p) not in paired]
    used = {id(q) for _, twins in inside for q in twins}
    rest_twins = [q for q in oracle.parameters() if id(q) not in used]
    assert [p.shape for p in rest] == [q.shape for q in rest_twins]
    return inside + [(p, [q]) for p, q in zip(rest, rest_twins)]


def copy_weights(supernet, oracle):
    with torch.no_grad():
        for p, twins in paired_parameters(supernet, oracle):
            for part, q in zip(p.chunk(len(twins)), twins):
                q.copy_(part)
