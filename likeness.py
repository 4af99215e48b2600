"""How decided a search is, from the alphas of its history, and how alike the cells of searches are.

Likeness is from 0 to 1 of cells, from -1 to 1 of alphas; `chance` tells what random ones reach.
"""

import random
from collections import Counter
from itertools import combinations, permutations, takewhile

import numpy as np
from scipy import stats
from scipy.special import softmax

import genotypes
import sample
from correlate import rank_correlation

MEASURES = ["ops", "edges", "edges with ops", "alphas"]
OF_NODES = genotypes.by_node(np.arange(genotypes.NUM_EDGES))  # the edges that enter each node


def choose(epoch) -> list:
    """What the alphas and betas of an epoch of meta.history choose, for normal and reduction cell:
    the cell, [(edge, op), ...]; of its edges, by how much the softmax weight of the op is above
    that of the next, `none` apart; of its nodes, by how much the weaker edge is above the strongest
    that was not chosen. The strength of an edge is the weight of its op, with betas times theirs.
    """
    weights = softmax(epoch["alphas"], -1)[..., 1:]  # (2, 14, 7)
    strengths = weights.max(-1)  # (2, 14)
    if epoch.get("betas"):
        betas = np.array(epoch["betas"])
        strengths = strengths * np.hstack([softmax(betas[:, rows], -1) for rows in OF_NODES])
    cells = []
    for ops, edges in zip(weights, strengths):
        orders = [rows[np.argsort(-edges[rows], kind="stable")] for rows in OF_NODES]
        chosen = np.hstack([sorted(order[:2]) for order in orders])
        first, second = np.sort(ops[chosen])[:, :-3:-1].T
        leads = [edges[order[1]] - edges[order[2]] for order in orders[1:]]
        cells.append(([*zip(chosen, ops[chosen].argmax(-1))], first - second, leads))
    return cells


def decided(meta) -> list:
    """For normal and reduction cell, before --max_skips: (how many of the last epochs choose the
    same cell, of how many with alpha steps, the two leads of `choose` at the end). Empty for a
    search without alpha steps, or without alphas in its history."""
    history = meta["history"][meta["identity"].get("alpha_start") or 0 :]
    epochs = [choose(epoch) for epoch in reversed(history) if epoch.get("alphas")]
    found = []
    for choices in zip(*epochs):
        cell, *leads = choices[0]
        stood = [*takewhile(lambda choice: choice[0] == cell, choices)]
        found.append((len(stood), len(history), *leads))
    return found


def relabelled(pairs):
    """The edges (op, source, node) of a cell, then those with its nodes in each other order."""
    for order in permutations(range(2, 2 + len(pairs) // 2)):
        new = 0, 1, *order
        yield [(op, new[j], new[2 + k // 2]) for k, (op, j) in enumerate(pairs)]


def alike(a, b) -> list:
    """The shares that two cells [(op, input), ...] have in common: of their ops anywhere, of their
    edges (source, node) with any op, and of edges with their ops; of edges under the labelling of
    the nodes that gives most, so that 1 is the same function."""

    def share(x, y):
        return (Counter(x) & Counter(y)).total() / len(x)

    orders, cell = [*relabelled(a)], next(relabelled(b))
    ends = [edge[1:] for edge in cell]
    return [
        share(next(zip(*a)), next(zip(*b))),
        max(share([edge[1:] for edge in order], ends) for order in orders),
        max(share(order, cell) for order in orders),
    ]


def compare(searches) -> np.ndarray:
    """The likeness of each two searches, (n, n, 2 cells, 4 measures), that of alphas the rank
    correlation of their softmax over all edges; NaN without alphas, and of two with the same seed,
    which start from the same weights and split the images alike."""
    table = np.full((len(searches), len(searches), 2, len(MEASURES)), np.nan)
    for i, j in combinations(range(len(searches)), 2):
        pair = searches[i], searches[j]
        if pair[0]["meta"]["seed"] == pair[1]["meta"]["seed"]:
            continue
        alphas = [search["meta"]["history"][-1].get("alphas") for search in pair]
        for k, name in enumerate(("normal", "reduce")):
            table[i, j, k, :3] = alike(*(search["genotype"][name] for search in pair))
            if all(alphas):
                table[i, j, k, 3] = rank_correlation(*(softmax(x[k], -1).ravel() for x in alphas))
        table[j, i] = table[i, j]
    return table


@np.errstate(invalid="ignore")
def mean_over_pairs(table, a, b):
    """The mean of `compare` over the pairs of a search of list a and another of b, (2, 4), and its
    95% interval, NaN where unknown. Pairs share searches, so searches, not pairs, are what varies:
    the variance is the jackknife's, which leaves out one search and all its pairs at a time, with
    Student's t. (The bootstrap's intervals hold the truth for 65% of studies with three seeds.) Two
    objectives with the same two seeds have two pairs that share no search: a single degree."""

    def mean(a, b):
        values = table[np.ix_(a, b)]
        return np.nansum(values, (0, 1)) / np.isfinite(values).sum((0, 1))

    variance, freedom = 0, 0
    for group in [a] if a == b else [a, b]:
        rest = [mean([i for i in a if i != k], [i for i in b if i != k]) for k in group]
        freedom += len(group) - 1
        variance = variance + (len(group) - 1) * np.var(rest, axis=0)
    pairs = np.isfinite(table[np.ix_(a, b)]).sum((0, 1))
    t = stats.t.ppf(0.975, np.minimum(freedom, pairs - 1))
    margin = t * np.sqrt(np.where(variance == 0, np.nan, variance))
    return mean(a, b), np.clip([mean(a, b) - margin, mean(a, b) + margin], [0, 0, 0, -1], 1)


def can_be_found(cell):
    """Whether a search may end with a cell: no `none`, two inputs for each node."""
    sources = [j for _, j in cell]
    return "none" not in dict(cell) and all(np.subtract(sources[::2], sources[1::2]))


def chance(draws=1000, seed=0):
    """The likeness of pairs of random cells: mean, lower and upper end of the 95% range, (3, 4).
    Of the cells that sample.py draws, without its filter, those count that a search can find.
    Alphas are independent and normal."""
    rng, cells = random.Random(seed), []
    while len(cells) < 2 * draws:
        genotype = sample.draw_darts(rng)
        cells += filter(can_be_found, (genotype.normal, genotype.reduce))
    values = [alike(a, b) for a, b in zip(cells[:draws], cells[draws:])]
    shape = 2, draws, genotypes.NUM_EDGES, len(genotypes.PRIMITIVES)
    alphas = softmax(np.random.default_rng(seed).standard_normal(shape), -1).reshape(2, draws, -1)
    values = np.column_stack([values, rank_correlation(*alphas)])
    return np.vstack([values.mean(0), np.quantile(values, [0.025, 0.975], axis=0)])
