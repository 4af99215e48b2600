"""How decided and how alike searches are, on constructed cases."""

import random

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

import genotypes
import likeness
import model_search
import sample
from genotypes import NUM_EDGES, PRIMITIVES
from model_search import edge_index

A = [("sep_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1)]
A += [("dil_conv_3x3", 0), ("dil_conv_5x5", 2), ("avg_pool_3x3", 3), ("sep_conv_3x3", 2)]


def make_alphas(chosen):
    """Alphas of two equal cells, zero but for {(source, node): {op: alpha}}."""
    alphas = np.zeros((2, NUM_EDGES, len(PRIMITIVES)))
    for (source, node), ops in chosen.items():
        for op, alpha in ops.items():
            alphas[:, edge_index(node, source), PRIMITIVES.index(op)] = alpha
    return alphas


@pytest.mark.parametrize("names", [["alphas"], ["alphas", "betas"]])
def test_choices_are_those_of_derive(names):
    rng = np.random.default_rng(0)
    arch = [rng.standard_normal((2, NUM_EDGES, 8)), rng.standard_normal((2, NUM_EDGES))]
    genotype = model_search.derive(*map(torch.tensor, arch[: len(names)]))
    epoch = {name: values.tolist() for name, values in zip(names, arch)}
    for (cell, *_), pairs in zip(likeness.choose(epoch), genotype[::2]):
        edges = [(edge_index(2 + k // 2, j), op) for k, (op, j) in enumerate(pairs)]
        assert sorted((edge, PRIMITIVES[1 + op]) for edge, op in cell) == sorted(edges)


def test_leads_by_hand():
    chosen = {(0, 3): {"skip_connect": 2, "none": 1}, (2, 3): {"sep_conv_3x3": 3}}
    alphas = make_alphas({**chosen, (1, 3): {"max_pool_3x3": 1}}).tolist()
    a, b = softmax([2, 1, 0, 0, 0, 0, 0, 0]), softmax([3, 0, 0, 0, 0, 0, 0, 0])
    third, *_ = softmax([1, 0, 0, 0, 0, 0, 0, 0])
    for _, ops, edges in likeness.choose({"alphas": alphas}):
        assert ops == pytest.approx([0, 0, a[0] - a[2], b[0] - b[1], 0, 0, 0, 0])
        assert edges == pytest.approx([a[0] - third, 0, 0])
    betas = np.zeros((2, NUM_EDGES))
    betas[0, edge_index(3, 1)] = 5  # of the normal cell: the edge 1 -> 3 is now the strongest
    weights = softmax([0, 5, 0])
    (cell, _, edges), (_, _, others) = likeness.choose({"alphas": alphas, "betas": betas.tolist()})
    assert [edge for edge, _ in cell][2:4] == [edge_index(3, 1), edge_index(3, 2)]
    assert edges == pytest.approx([(b[0] - a[0]) * weights[0], 0, 0])
    assert others == pytest.approx([(a[0] - third) / 3, 0, 0])


def test_for_how_long_a_cell_has_stood():
    x = make_alphas({(0, 2): {"skip_connect": 1}})
    y = x.copy()
    y[1] = make_alphas({(1, 2): {"sep_conv_3x3": 1}})[1]  # another reduction cell
    history = [{"alphas": alphas.tolist()} for alphas in (x, x, y, x, 2 * x)]
    meta = {"history": history, "identity": {"alpha_start": 1}}
    assert [row[:2] for row in likeness.decided(meta)] == [(4, 4), (2, 4)]
    history[1]["alphas"] = None  # not kept
    assert [row[:2] for row in likeness.decided(meta)] == [(3, 4), (2, 4)]
    assert likeness.decided({**meta, "identity": {"alpha_start": 5}}) == []
    assert likeness.decided({"history": [{}], "identity": {}}) == []


# --------------------------------------------------------------------------------------------------
# alike


def relabel(pairs, new):
    """The cell with node k named new[k]."""
    edges = sorted((new[2 + k // 2], op, new[j]) for k, (op, j) in enumerate(pairs))
    return [(op, j) for _, op, j in edges]


def test_relabelled_cells_are_the_same():
    assert likeness.alike(A, A) == [1, 1, 1]
    b = relabel(A, [0, 1, 3, 2, 5, 4])  # nodes 2 and 3, of the inputs alone, change places; 4 and 5
    assert {*b[:2]} == {*A[2:4]}
    assert likeness.alike(A, b) == likeness.alike(b, A) == [1, 1, 1]
    swapped = [(op, {0: 1, 1: 0}.get(j, j)) for op, j in A]  # the cell's inputs are not alike
    ops, edges, both = likeness.alike(A, swapped)
    assert ops == 1 and both < 1


def test_shares_by_hand():
    b = [*A[:-1], ("skip_connect", 2)]  # another op
    assert likeness.alike(A, b) == [7 / 8, 1, 7 / 8]
    b = [*A[:-1], ("sep_conv_3x3", 0)]  # from elsewhere
    assert likeness.alike(A, b) == [1, 7 / 8, 7 / 8]
    skips = [("skip_connect", k % 2) for k in range(8)]
    pools = [("max_pool_3x3", k % 2) for k in range(8)]
    assert likeness.alike(skips, pools) == [0, 1, 0]


def test_the_order_of_two_cells_does_not_matter():
    rng = random.Random(0)
    for _ in range(30):
        a, b = (sample.draw_darts(rng).normal for _ in range(2))
        likenesses = likeness.alike(a, b)
        assert likenesses == likeness.alike(b, a)
        same = relabel(b, [0, 1, *rng.sample(range(2, 6), 4)])
        assert likenesses == likeness.alike(a, same)


def test_random_cells_are_at_chance():
    found = likeness.chance()
    rng, cells = random.Random(7), []
    while len(cells) < 400:  # derived from random alphas
        alphas = torch.tensor(
            [[[rng.gauss(0, 1) for _ in PRIMITIVES] for _ in range(NUM_EDGES)]] * 2
        )
        cells.append(model_search.derive(alphas).normal)
    values = [likeness.alike(a, b) for a, b in zip(cells[::2], cells[1::2])]
    assert np.mean(values, 0) == pytest.approx(found[0, :3], abs=0.03)
    inside = (found[1, :3] <= values) & (values <= found[2, :3])
    assert (inside.mean(0) > 0.9).all()
    mean, low, high = found[:, 3]  # 112 independent values: a deviation of 1 / sqrt(111)
    assert abs(mean) < 0.01 and (low, high) == pytest.approx((-0.186, 0.186), abs=0.02)


def make_search(cell, alphas, seed):
    history = [{} if alphas is None else {"alphas": alphas.tolist()}]
    return {"genotype": {"normal": cell, "reduce": A}, "meta": {"history": history, "seed": seed}}


def test_rank_correlation_of_alphas():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2, NUM_EDGES, len(PRIMITIVES)))
    shifted = a + rng.standard_normal((2, NUM_EDGES, 1))  # the same softmax
    searches = [make_search(A, x, seed) for seed, x in enumerate((a, shifted, b, None))]
    table = likeness.compare(searches)
    assert table[0, 1] == pytest.approx(np.ones((2, 4)))
    expected = [stats.spearmanr(softmax(a[k], -1), softmax(b[k], -1), axis=None)[0] for k in (0, 1)]
    assert table[0, 2, :, 3] == pytest.approx(expected) and np.abs(expected).max() < 0.25
    assert np.isnan(table[0, 3, :, 3]).all() and np.isfinite(table[0, 3, :, :3]).all()
    assert np.isnan(table[0, 0]).all() and np.array_equal(table[2, 1], table[1, 2])
    searches[1]["meta"]["seed"] = 0  # then both began with the same weights
    table = likeness.compare(searches)
    assert np.isnan(table[0, 1]).all() and np.isfinite(table[1, 2]).all()


def test_intervals_treat_searches_as_what_varies():
    """The mean over pairs is a U-statistic. With values x_i + x_j its jackknife is that of 2 x."""
    x = np.array([0.1, 0.25, 0.15, 0.3])
    table = np.broadcast_to((x[:, None] + x)[..., None, None], (4, 4, 2, 4)).copy()
    table[range(4), range(4)] = np.nan
    mean, (low, high) = likeness.mean_over_pairs(table, [0, 1, 2, 3], [0, 1, 2, 3])
    assert mean == pytest.approx(np.full((2, 4), 2 * x.mean()))
    margin = stats.t.ppf(0.975, 3) * 2 * stats.sem(x)
    assert high - mean == pytest.approx(np.full((2, 4), margin)) and np.allclose(mean - low, margin)
    mean, (low, high) = likeness.mean_over_pairs(table, [0, 1], [2, 3])  # two groups, two means
    margin = stats.t.ppf(0.975, 2) * np.hypot(stats.sem(x[:2]), stats.sem(x[2:]))
    assert mean == pytest.approx(np.full((2, 4), 0.4))
    assert high - mean == pytest.approx(np.full((2, 4), margin))
    of_seeds = table.copy()  # of the seeds 0, 1 and 0, 1: two pairs, each in both groups
    of_seeds[[0, 1], [2, 3]] = np.nan
    of_seeds[0, 3], of_seeds[1, 2] = 0.30, 0.34
    mean, (low, high) = likeness.mean_over_pairs(of_seeds, [0, 1], [2, 3])
    margin = stats.t.ppf(0.975, 1) * 2**0.5 * stats.sem([0.30, 0.34])
    assert high - mean == pytest.approx(np.full((2, 4), margin))
    assert mean == pytest.approx(np.full((2, 4), 0.32))
    for a, b in (([0, 1], [0, 1]), ([0], [1, 2, 3])):  # of one pair or of one search: unknown
        mean, limits = likeness.mean_over_pairs(table, a, b)
        assert np.isfinite(mean).all() and np.isnan(limits).all()
    assert np.isnan(likeness.mean_over_pairs(table, [0], [0])[0]).all()
    table[0, 2:], table[1, 2:] = np.array([[0.2, 0.6], [0.6, 0.2]])[..., None, None]
    mean, limits = likeness.mean_over_pairs(table, [0, 1], [2, 3])  # each search has the same mean
    assert mean == pytest.approx(np.full((2, 4), 0.4)) and np.isnan(limits).all()


def test_the_published_cells_for_the_normal_cell_are_alike():
    """Those of ImageNet, found by cls, rot, col and jig: more than random ones, in their ops."""
    names = [f"unnas_imagenet_{task}" for task in ("cls", "rot", "col", "jig")]
    table = likeness.compare(
        [
            make_search(genotypes.named_cell(name).normal, None, seed)
            for seed, name in enumerate(names)
        ]
    )
    mean, _ = likeness.mean_over_pairs(table, [0, 1, 2, 3], [0, 1, 2, 3])
    assert mean[0, 0] > likeness.chance(100)[2, 0]
