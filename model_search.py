"""The supernet of DARTS: every edge of every cell mixes all candidate ops by the softmax of its alphas.

Built per source node, not per edge: the edges that leave a node all read the same tensor. So its pools (and their BN) are
computed once for all of them, its ReLU once for all ops, and the E copies of a convolution, one per edge, run as one
grouped convolution: fewer and larger operations. The function is that of the edge-by-edge supernet in tests/.
"""

import math
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import NODES, NUM_EDGES, PRIMITIVES, Genotype
from ops import OPS, STEMS, factorized_reduce, reduction_cells, relu_conv_bn


def edge_index(node, source):
    """The row of alpha that belongs to the edge source -> node; sources are 0, 1 (inputs), 2, ...; nodes start at 2."""
    return sum(range(2, node)) + source


def add(tensors):
    return reduce(torch.add, tensors)


class MixedEdges(nn.Module):
    """The E edges that leave one node. `none` contributes nothing and is not computed; like all BN in the supernet,
    the one after a pool is not affine."""

    def __init__(self, C, stride, copies):
        super().__init__()
        self.C, self.copies = C, copies
        self.shared = nn.ModuleDict()  # ops without weights: one output for all edges
        self.copied = (
            nn.ModuleDict()
        )  # ops with weights: an output for each edge; without their ReLU and
        self.norms = nn.ModuleDict()  # their last BN
        for name in PRIMITIVES:
            op = OPS[name](C, stride, affine=False, copies=copies)
            if list(op.parameters()):
                if not (isinstance(op[0], nn.ReLU) and isinstance(op[-1], nn.BatchNorm2d)):
                    raise TypeError(
                        f"{name}: an op with weights starts with a ReLU and ends with a BatchNorm2d"
                    )
                self.copied[name], self.norms[name] = op[1:-1], op[-1]
            elif name != "none":
                is_pool = "pool" in name
                self.shared[name] = (
                    nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if is_pool else op
                )

    def forward(self, x, weights):  # (B, C, H, W), (E, number of ops)
        weight = dict(zip(PRIMITIVES, weights.unbind(1)))  # (E,) for each op
        x_copies = torch.cat([F.relu(x)] * self.copies, 1)  # (B, E*C, H, W)
        # The BN that ends an op multiplies by the edge's weight in the same pass.
        outputs = [
            scaled_bn(self.norms[name], op(x_copies), weight[name])
            for name, op in self.copied.items()
        ]
        mixed = (
            add(outputs).permute(0, 2, 3, 1).unflatten(3, (self.copies, self.C))
        )  # a view, in channels_last
        for name, op in self.shared.items():
            y = op(x).permute(0, 2, 3, 1).unsqueeze(3)  # (B, h, w, 1, C)
            mixed = torch.addcmul(mixed, y, weight[name][:, None].to(y.dtype))  # (B, h, w, E, C)
        # unbind, as the backward of a slice would fill a tensor of this size with zeros for each edge
        return [edge.permute(0, 3, 1, 2) for edge in mixed.unbind(3)]  # E x (B, C, h, w)


def scaled_bn(bn, x, weight):
    """Non-affine BN of E copies (B, E*C, h, w), times weight (E,)."""
    weight = weight.repeat_interleave(x.shape[1] // len(weight))
    if isinstance(bn, nn.SyncBatchNorm):
        return bn(x) * weight[:, None, None].to(x.dtype)
    return F.batch_norm(
        x, bn.running_mean, bn.running_var, weight, None, bn.training, bn.momentum, bn.eps
    )


class Cell(nn.Module):
    def __init__(self, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        self.reduction = reduction
        if reduction_prev:
            self.preprocess0 = factorized_reduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = relu_conv_bn(C_prev_prev, C, affine=False)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=False)
        # readers[j]: the nodes with an edge from j. The last node has none: it only goes to the output.
        self.readers = [range(max(2, j + 1), 2 + NODES) for j in range(1 + NODES)]
        self.sources = nn.ModuleList(
            MixedEdges(C, 2 if reduction and j < 2 else 1, copies=len(nodes))
            for j, nodes in enumerate(self.readers)
        )

    def forward(self, s0, s1, weights):  # weights: (edges, number of ops)
        rows = weights.unbind(0)
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        incoming = {node: [] for node in range(2, 2 + NODES)}
        for j, (edges, nodes) in enumerate(zip(self.sources, self.readers)):
            if j >= 2:
                states.append(add(incoming[j]))
            outputs = edges(states[j], torch.stack([rows[edge_index(node, j)] for node in nodes]))
            for node, output in zip(nodes, outputs):
                incoming[node].append(output)
        states.append(add(incoming[1 + NODES]))
        return torch.cat(states[2:], 1)  # (B, 4C, h, w)


class Supernet(nn.Module):
    """`supernet(x, alphas)`: x (B, in_channels, H, W), alphas (2, 14, 8) for normal and reduction cells -> logits.

    The alphas are not parameters of this module, so the optimisers of weights and alphas cannot overlap.
    `task` says how many channels its inputs have and how many cells reduce the resolution, and builds the head.
    """

    def __init__(self, C, layers, stem, task):
        super().__init__()
        self.stem = STEMS[stem](task.in_channels, C)
        C_prev_prev = C_prev = self.stem.C_out
        reduction_prev = self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reduction_cells(layers, task.reductions)
            C = 2 * C if reduction else C
            self.cells.append(Cell(C_prev_prev, C_prev, C, reduction, reduction_prev))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.head = task.head(C_prev)

    def forward(self, x, alphas):
        normal, reduction = F.softmax(alphas, dim=-1).unbind(0)
        s0, s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, reduction if cell.reduction else normal)
        return self.head(s1, x.shape[-2:])


def init_alphas(device):
    """Alphas (2, 14, 8) close to equal: 1e-3 * N(0, 1)."""
    return (1e-3 * torch.randn(2, NUM_EDGES, len(PRIMITIVES))).to(device).requires_grad_()


def derive(alphas) -> Genotype:
    """The discrete cells of alphas (2, 14, 8): for each node the two incoming edges whose best op other than `none` has
    the largest softmax weight, on each edge that op; the stronger edge first, ties to the lower index."""
    cells = []
    for weights in F.softmax(alphas.detach(), dim=-1).tolist():
        pairs = []
        for node in range(2, 2 + NODES):
            edges = []
            for j in range(node):
                row = weights[edge_index(node, j)]
                best = max(
                    (k for k, name in enumerate(PRIMITIVES) if name != "none"), key=row.__getitem__
                )
                edges.append((row[best], PRIMITIVES[best], j))
            edges.sort(key=lambda edge: -edge[0])
            pairs += [(op, j) for _, op, j in edges[:2]]
        cells += [pairs, list(range(2, 2 + NODES))]
    return Genotype(*cells)


def health(alphas, genotype: Genotype) -> dict:
    """How the search stands: mean entropy of the edges' softmax (1 = undecided, 0 = decided) and, in the derived cells,
    the numbers of skip connections and of convolutions; for the normal and the reduction cell each."""
    weights = F.softmax(alphas.detach(), dim=-1)
    entropy = torch.special.entr(weights).sum(-1).mean(-1) / math.log(len(PRIMITIVES))  # (2,)
    cells = [[op for op, _ in pairs] for pairs in (genotype.normal, genotype.reduce)]
    return {
        "entropy": [round(e, 6) for e in entropy.tolist()],
        "skips": [ops.count("skip_connect") for ops in cells],
        "convs": [sum("conv" in op for op in ops) for ops in cells],
    }
