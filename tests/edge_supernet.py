"""The supernet as DARTS wrote it down: a module for every edge and op, a loop over edges. Slow and
simple, it is what model_search.py must compute; `copy_weights` gives both the same weights."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import NODES, PRIMITIVES
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


class EdgeCell(nn.Module):
    def __init__(self, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        self.reduction = reduction
        preprocess = factorized_reduce if reduction_prev else relu_conv_bn
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=False)
        self.edges = nn.ModuleDict()
        for node in range(2, 2 + NODES):
            for j in range(node):
                self.edges[f"{j}->{node}"] = MixedOp(C, 2 if reduction and j < 2 else 1)

    def forward(self, s0, s1, weights):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        row = 0
        for node in range(2, 2 + NODES):
            total = 0
            for j in range(node):
                total = total + self.edges[f"{j}->{node}"](states[j], weights[row])
                row += 1
            states.append(total)
        return torch.cat(states[2:], 1)


class EdgeSupernet(nn.Module):
    def __init__(self, C, layers, stem, head, in_channels=3, reductions=2):
        super().__init__()
        self.stem = STEMS[stem](in_channels, C)
        C_prev_prev, C_prev, reduction_prev = self.stem.C_out, self.stem.C_out, self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reduction_cells(layers, reductions)
            C = 2 * C if reduction else C
            self.cells.append(EdgeCell(C_prev_prev, C_prev, C, reduction, reduction_prev))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.head = head(C_prev)
        for module in self.modules():
            if isinstance(module, DepthwiseConv):
                module.__class__ = nn.Conv2d  # with PyTorch's own gradients

    def forward(self, x, alphas):
        normal, reduction = F.softmax(alphas, dim=-1)
        s0, s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduction if cell.reduction else normal)
        return self.head(s1, x.shape[-2:])


def paired_parameters(supernet, oracle):
    """[(parameter of the supernet, the oracle's parameters that are its copies)], each once."""
    inside = []
    for cell, edge_cell in zip(supernet.cells, oracle.cells):
        for j, (source, readers) in enumerate(zip(cell.sources, cell.readers)):
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
