"""The supernet of DARTS: every edge mixes all candidate ops by the softmax of its alphas.

Built per source node, not per edge, as all edges that leave a node read the same tensor: its pools
(and their BN) are computed once for all edges, its ReLU once for all ops, and the E copies of a
convolution, one per edge, run as one grouped convolution. tests/edge_supernet.py is the same
function edge by edge.

With partial channels (PC-DARTS, Xu et al. 2020) the ops of an edge get 1 / `partial` of its
channels and the others pass by. Betas then weight the edges that enter a node.
"""

import functools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import EDGES_OF_NODES, NODES, NUM_EDGES, PRIMITIVES, Genotype
from ops import OPS, STEMS, ReLUConvBN, factorized_reduce, reduction_cells, relu_conv_bn


def edge_index(node, source):
    """The row of alpha of the edge source -> node. The inputs are 0 and 1, nodes start at 2."""
    return sum(range(2, node)) + source


# READERS[j]: the nodes with an edge from j. The last node has no readers.
READERS = [range(max(2, j + 1), 2 + NODES) for j in range(1 + NODES)]


class MixedEdges(nn.Module):
    """The E edges that leave one node, each with the mixed op of DARTS, its equation 2:

        mixed(x) = sum over ops o of softmax(alpha)_o * o(x)

    with x (B, C, H, W), an alpha of 8 for each edge and o(x) (B, C, h, w); h, w = H, W / stride.
    An op with weights (`per_edge`) has other weights on each edge, one without (`shared`) has the
    same output on all. `none` adds nothing and is not computed. The BN after a pool is not affine,
    like all BN in the supernet.
    """

    def __init__(self, C, stride, copies):
        super().__init__()
        self.C, self.copies = C, copies
        self.shared, self.per_edge = nn.ModuleDict(), nn.ModuleDict()
        for name in PRIMITIVES:
            op = OPS[name](C, stride, affine=False, copies=copies)
            if isinstance(op, ReLUConvBN):
                self.per_edge[name] = op
            elif "pool" in name:
                self.shared[name] = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            elif name != "none":
                self.shared[name] = op

    def forward(self, x, weights):
        """x (B, C, H, W), weights (8, E) after the softmax -> E tensors (B, C, h, w)."""
        weight = dict(zip(PRIMITIVES, weights.repeat_interleave(self.C, 1)))  # (E*C,) for each op
        x_copies = torch.cat([F.relu(x)] * self.copies, 1)  # (B, E*C, H, W)
        per_edge = self.per_edge.items()
        outputs = [scaled_bn(op.bn, op.convs(x_copies), weight[name]) for name, op in per_edge]
        mixed = functools.reduce(torch.add, outputs).permute(0, 2, 3, 1)  # (B, h, w, E*C)
        mixed = mixed.unflatten(3, (self.copies, self.C))  # (B, h, w, E, C), a view
        for name, op in self.shared.items():
            y = op(x).permute(0, 2, 3, 1).unsqueeze(3)  # (B, h, w, 1, C)
            mixed = torch.addcmul(mixed, y, weight[name].view(self.copies, self.C).to(y.dtype))
        # unbind, as the backward of each slice would fill a tensor of this size with zeros
        return [edge.permute(0, 3, 1, 2) for edge in mixed.unbind(3)]


def scaled_bn(bn, x, weight):
    """Non-affine BN of x (B, E*C, h, w), times weight (E*C,), in one pass."""
    if isinstance(bn, nn.SyncBatchNorm):
        return bn(x) * weight[:, None, None].to(x.dtype)
    statistics = bn.running_mean, bn.running_var
    return F.batch_norm(x, *statistics, weight, None, bn.training, bn.momentum, bn.eps)


class Cell(nn.Module):
    def __init__(self, C_prev_prev, C_prev, C, reduction, reduction_prev, partial=1):
        super().__init__()
        self.reduction, self.partial = reduction, partial
        preprocess = factorized_reduce if reduction_prev else relu_conv_bn
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=False)
        self.sources = nn.ModuleList(
            MixedEdges(C // partial, 2 if reduction and j < 2 else 1, len(nodes))
            for j, nodes in enumerate(READERS)
        )

    def forward(self, s0, s1, weights, edge_weights):
        """s0 (B, C_prev_prev, H, W), s1 (B, C_prev, H, W), weights (8, E) of the ops on the edges
        that leave each node and those of the edges that enter each -> (B, 4C, h, w)."""
        states = {0: self.preprocess0(s0), 1: self.preprocess1(s1)}  # (B, C, h, w) for each node
        passing = []  # (B, C - C/K, h, w) for each node that has edges to others
        for j, (edges, nodes, of_ops) in enumerate(zip(self.sources, READERS, weights)):
            x = states[j]
            if self.partial > 1:
                c = x.shape[1] // self.partial
                x, rest = x.split([c, x.shape[1] - c], 1)
                pools = self.reduction and j < 2
                passing.append(F.max_pool2d(rest, 2, ceil_mode=True) if pools else rest)
            for node, y in zip(nodes, edges(x, of_ops)):  # complete when the turn of a node comes
                states[node] = states[node] + y if node in states else y
            if self.partial > 1 and j > 0:  # nothing enters node j + 1 any more
                terms = [w * rest for w, rest in zip(edge_weights[j - 1], passing)]
                y = torch.cat([states[j + 1], functools.reduce(torch.add, terms)], 1)
                states[j + 1] = F.channel_shuffle(y, self.partial)
        return torch.cat([states[node] for node in range(2, 2 + NODES)], 1)


class Supernet(nn.Module):
    """`supernet(x, alphas, betas)`: x (B, in_channels, H, W), alphas (2, 14, 8) and, with partial
    channels, betas (2, 14) for normal and reduction cells -> logits. `head(C)` builds the module
    that gets the features (B, C, h, w) and the (H, W) of x; `reductions` cells halve the
    resolution; `partial` divides C. Alphas and betas are not parameters of this module, so that the
    optimisers of weights and alphas cannot overlap."""

    def __init__(self, C, layers, stem, head, in_channels=3, reductions=2, partial=1):
        super().__init__()
        self.stem = STEMS[stem](in_channels, C)
        C_prev_prev, C_prev, reduction_prev = self.stem.C_out, self.stem.C_out, self.stem.reduces
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reduction_cells(layers, reductions)
            C = 2 * C if reduction else C
            self.cells.append(Cell(C_prev_prev, C_prev, C, reduction, reduction_prev, partial))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.head = head(C_prev)
        for bn in self.modules():
            if isinstance(bn, nn.BatchNorm2d):
                bn.num_batches_tracked = None  # read by nobody, but a kernel each on a GPU

    def forward(self, x, alphas, betas=None):
        weights, edge_weights = normalise(alphas, betas)
        rows = weights.unbind(1)  # (2, 8) for each edge
        leaving = [[edge_index(node, j) for node in nodes] for j, nodes in enumerate(READERS)]
        by_source = [torch.stack([rows[k] for k in edges], 2) for edges in leaving]  # (2, 8, E)
        by_node = edge_weights.split(EDGES_OF_NODES, 1)  # (2, n) each
        normal, reduction = zip(zip(*by_source), zip(*by_node))
        s0, s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *(reduction if cell.reduction else normal))
        return self.head(s1, x.shape[-2:])


def init_alphas(device):
    """Alphas (2, 14, 8) close to equal: 1e-3 * N(0, 1)."""
    return (1e-3 * torch.randn(2, NUM_EDGES, len(PRIMITIVES))).to(device).requires_grad_()


def init_betas(device):
    return (1e-3 * torch.randn(2, NUM_EDGES)).to(device).requires_grad_()


def normalise(alphas, betas=None):
    """The weights of the ops (2, 14, 8) and of the edges (2, 14): softmax of the alphas of an edge
    and of the betas of the edges that enter a node. Betas weight the ops, too."""
    weights = F.softmax(alphas, dim=-1)
    if betas is None:
        return weights, weights.new_ones(2, NUM_EDGES)
    edge_weights = torch.cat([F.softmax(b, dim=-1) for b in betas.split(EDGES_OF_NODES, 1)], 1)
    return weights * edge_weights.unsqueeze(2), edge_weights


def derive(alphas, betas=None, max_skips=2 * NODES) -> Genotype:
    """The discrete cells of alphas (2, 14, 8) and betas: of each node the two edges with the
    largest weight of an op other than `none`, the stronger first, with this op; ties to the lower
    index. While the normal cell has more than `max_skips` skip connections, the weakest of them
    gets weight 0 and the cell is derived anew, as in P-DARTS (Chen et al. 2019)."""
    fields = []
    for weights, limit in zip(normalise(alphas, betas)[0].tolist(), (max_skips, 2 * NODES)):
        edges = strongest_edges(weights)
        while len(skips := [edge for edge in edges if edge[1] == "skip_connect"]) > limit:
            weight, op, node, j = min(skips)
            weights[edge_index(node, j)][PRIMITIVES.index(op)] = 0
            edges = strongest_edges(weights)
        fields += [[(op, j) for _, op, _, j in edges], list(range(2, 2 + NODES))]
    return Genotype(*fields)


def strongest_edges(weights):
    """[(weight, op, node, source)], two for each node, from the weights of one cell."""
    chosen = []
    for node in range(2, 2 + NODES):
        edges = []
        for j in range(node):
            weight = dict(zip(PRIMITIVES, weights[edge_index(node, j)]))
            weight.pop("none")
            op = max(weight, key=weight.get)
            edges.append((weight[op], op, node, j))
        chosen += sorted(edges, key=lambda edge: -edge[0])[:2]
    return chosen


def alpha_stats(alphas, genotype: Genotype) -> dict:
    """Of the normal and the reduction cell: mean entropy of the edges' softmax over log 8 (from 1,
    undecided, to 0), numbers of skip connections and of convolutions in the derived cell."""
    weights = F.softmax(alphas.detach(), dim=-1)
    entropy = torch.special.entr(weights).sum(-1).mean(-1) / math.log(len(PRIMITIVES))  # (2,)
    cells = [[op for op, _ in pairs] for pairs in (genotype.normal, genotype.reduce)]
    return {
        "entropy": [round(e, 6) for e in entropy.tolist()],
        "skips": [ops.count("skip_connect") for ops in cells],
        "convs": [sum("conv" in op for op in ops) for ops in cells],
    }
