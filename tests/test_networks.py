"""The supernet against its edge-by-edge form; fixed networks; what acts on them in training."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from cli import InputError
from edge_supernet import EdgeSupernet, copy_weights, paired_parameters

import utils
from genotypes import CELLS, PRIMITIVES, Genotype, load_arch
from model_eval import Network, check_auxiliary
from model_search import Supernet, alpha_stats, derive, edge_index, init_alphas
from ops import OPS, DepthwiseConv, drop_path, factorized_reduce
from pretext import ASPPHead, PooledHead


def ten_classes(C):
    return PooledHead(C, 10)


def jig(C):
    return PooledHead(C, 10, 3)


def seg(C):
    return ASPPHead(C, 10, 4, [6])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "stem, size, head, K",
    [
        ("cifar", 16, ten_classes, 1),
        ("cifar", 13, ten_classes, 1),
        ("cifar", 13, jig, 4),
        ("cifar", 16, ten_classes, 2),
        ("imagenet", 64, ten_classes, 1),
        ("imagenet", 75, ten_classes, 1),
        ("imagenet", 75, seg, 4),
        ("imagenet", 64, jig, 2),
    ],
)
def test_supernet_equals_edge_by_edge(stem, size, head, K, layout):
    """Partial channels, too."""
    shape = 4, 3, stem, head, 3, 1 if head is seg else 2, K
    supernet = Supernet(*shape).double().to(memory_format=layout)
    oracle = EdgeSupernet(*shape).double()
    copy_weights(supernet, oracle)
    arch = [torch.randn(2, 14, len(PRIMITIVES)).double()]
    arch += [torch.randn(2, 14).double()] * (K > 1)
    arch_oracle = [values.clone().requires_grad_() for values in arch]
    arch = [values.requires_grad_() for values in arch]
    x = torch.randn(3, 3, size, size).double()
    logits, logits_oracle = supernet(x, *arch), oracle(x, *arch_oracle)
    torch.testing.assert_close(logits, logits_oracle, rtol=1e-9, atol=1e-9)
    y = torch.randint(10, (len(logits), *logits.shape[2:]))
    F.cross_entropy(logits, y).backward()
    F.cross_entropy(logits_oracle, y).backward()
    for values, values_oracle in zip(arch, arch_oracle):
        torch.testing.assert_close(values.grad, values_oracle.grad, rtol=1e-9, atol=1e-10)
        assert values.grad.abs().max() > 1e-4
    for p, twins in paired_parameters(supernet, oracle):
        for part, q in zip(p.grad.chunk(len(twins)), twins):
            torch.testing.assert_close(part, q.grad, rtol=1e-9, atol=1e-10)
    # the same running statistics, so the same function in evaluation
    x = torch.randn(3, 3, size, size).double()
    torch.testing.assert_close(
        supernet.eval()(x, *arch), oracle.eval()(x, *arch), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "kernel, stride, dilation", [(3, 1, 1), (5, 1, 2), (7, 1, 1), (3, 1, 2), (5, 2, 1)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise_gradients(kernel, stride, dilation, layout):
    conv = DepthwiseConv(6, kernel, stride, dilation).double().to(memory_format=layout)
    x = torch.randn(2, 6, 9, 12).double().contiguous(memory_format=layout).requires_grad_()
    y = conv(x)
    expected = F.conv2d(x, conv.weight, None, stride, dilation * (kernel // 2), dilation, groups=6)
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(out, (x, conv.weight), grad) for out in (y, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    conv.weight.requires_grad_(False)  # as in an alpha step
    torch.testing.assert_close(
        torch.autograd.grad(conv(x), x, grad)[0], wanted[0], rtol=1e-12, atol=1e-12
    )
    conv.float().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x.detach().float())
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    torch.testing.assert_close(conv.weight.grad.double(), wanted[1], rtol=0.1, atol=0.3)


def test_synchronised_bn_gets_the_mixing_weights():
    """Converted, a supernet is the same function where the statistics are those of one process."""
    supernet, alphas = Supernet(4, 2, "cifar", ten_classes), torch.randn(2, 14, len(PRIMITIVES))
    x = torch.randn(4, 3, 8, 8)
    expected = supernet(x, alphas)
    converted = utils.place(supernet, "cpu", sync_bn=True)
    assert all(
        isinstance(op.bn, nn.SyncBatchNorm)
        for source in converted.cells[0].sources
        for op in source.per_edge.values()
    )
    torch.testing.assert_close(converted(x, alphas), expected)


def test_each_step_computes_its_own_gradients():
    supernet, alphas = Supernet(4, 2, "cifar", ten_classes), init_alphas("cpu")
    x = torch.randn(4, 3, 8, 8)
    supernet(x, alphas.detach()).sum().backward()
    assert alphas.grad is None and all(p.grad is not None for p in supernet.parameters())
    supernet.zero_grad()
    supernet.requires_grad_(False)
    supernet(x, alphas).sum().backward()
    assert alphas.grad is not None and all(p.grad is None for p in supernet.parameters())
    assert not {id(alphas)} & {id(p) for p in supernet.parameters()}


def test_derive():
    alphas = torch.zeros(2, 14, 8)
    alphas[0, :, 0] = 9  # `none` is the strongest everywhere, and never chosen
    alphas[0, edge_index(3, 2), PRIMITIVES.index("dil_conv_5x5")] = 8
    alphas[0, edge_index(3, 1), PRIMITIVES.index("skip_connect")] = 7
    # By raw alphas edge 0 -> 5 would win; by softmax it does not, as all its ops are strong.
    alphas[0, edge_index(5, 0), 1:] = 8
    alphas[0, edge_index(5, 4), PRIMITIVES.index("sep_conv_3x3")] = 7.9
    alphas[0, edge_index(5, 3), PRIMITIVES.index("sep_conv_5x5")] = 7.8
    genotype = derive(alphas)
    # all equal: the lower index
    assert genotype.normal[:2] == [("max_pool_3x3", 0), ("max_pool_3x3", 1)]
    assert genotype.normal[2:4] == [("dil_conv_5x5", 2), ("skip_connect", 1)]  # the stronger first
    assert genotype.normal[6:] == [("sep_conv_3x3", 4), ("sep_conv_5x5", 3)]
    assert genotype.reduce == [("max_pool_3x3", j) for j in (0, 1)] * 4
    found = alpha_stats(alphas, genotype)
    assert found["skips"] == [1, 0] and found["convs"] == [3, 0]
    entropy = torch.distributions.Categorical(logits=alphas).entropy().mean(1) / math.log(8)
    assert found["entropy"] == pytest.approx(entropy.tolist(), abs=1e-6)
    assert found["entropy"][1] == 1 and found["entropy"][0] < 0.5


def test_derive_with_betas_and_few_skips():
    skip, conv = (PRIMITIVES.index(op) for op in ("skip_connect", "sep_conv_3x3"))
    alphas, betas = torch.zeros(2, 14, 8), torch.zeros(2, 14)
    alphas[:, :, skip] = 2 + torch.arange(14) / 100  # the later, the stronger
    alphas[:, :, conv] = 1
    assert derive(alphas).normal == [
        *[("skip_connect", j) for j in (1, 0, 2, 1)],
        *[("skip_connect", j) for j in (3, 2, 4, 3)],
    ]
    # The weakest give way to the next best edge, or the next best op of theirs.
    genotype = derive(alphas, max_skips=5)
    assert genotype.normal[:4] == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)] + [
        ("skip_connect", 2),
        ("sep_conv_3x3", 0),
    ]
    assert [op for op, _ in genotype.normal[4:]] == ["skip_connect"] * 4
    assert genotype.reduce == derive(alphas).reduce  # of the normal cell alone
    # A strong edge wins over a strong op: 0 -> 3 and 1 -> 3, and 1 -> 2 before 0 -> 2
    betas[:, 2:4] = torch.tensor([3, 2])
    betas[:, 1] = 0.1
    normal = derive(alphas, betas).normal
    assert normal[:4] == [("skip_connect", j) for j in (1, 0, 0, 1)]
    assert "skip_connect" not in [op for op, _ in derive(alphas, betas, max_skips=0).normal]


@pytest.mark.parametrize("name", list(CELLS))
def test_named_cells_train(name):
    network = Network(load_arch(name), 4, 3, "cifar", ten_classes)
    network(torch.randn(2, 3, 15, 16)).sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters())


def test_sampled_cell_with_none_and_duplicates():
    pairs = [
        ("none", 0),
        ("none", 1),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 2),
        ("none", 0),
        ("max_pool_3x3", 4),
        ("dil_conv_3x3", 3),
    ]
    network = Network(
        Genotype(pairs, [2, 3, 4, 5], pairs, [2, 3, 4, 5]), 4, 3, "imagenet", ten_classes
    )
    x = torch.randn(2, 3, 65, 65)
    nodes = network.cells[0](*network.stem(x), 0.0).chunk(4, 1)
    assert [bool(node.any()) for node in nodes] == [False, True, False, True]  # 2 and 4 get nothing
    _, s1 = network.stem(x)
    x = network.cells[0].preprocess1(s1)
    torch.testing.assert_close(nodes[1], network.cells[0].ops[2](x) + network.cells[0].ops[3](x))
    network(torch.randn(2, 3, 65, 65)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.head.parameters())


@pytest.mark.parametrize("size", [7, 8])
def test_ops_halve_alike_and_copies_are_independent(size):
    """Every op gives the same size at stride 2, and E copies are E single ops side by side."""
    C, E = 4, 3
    x = torch.randn(2, E * C, size, size)
    for stride in (1, 2):
        for name, build in OPS.items():
            op = build(C, stride, True, E)
            y = op(x)
            assert y.shape == (2, E * C, -(-size // stride), -(-size // stride)), name
            for e in range(E):
                single = build(C, stride, True, 1)
                with torch.no_grad():
                    for p, q in zip(op.parameters(), single.parameters()):
                        q.copy_(p.chunk(E)[e])
                part = slice(e * C, (e + 1) * C)
                torch.testing.assert_close(y[:, part], single(x[:, part]), rtol=1e-4, atol=1e-5)


def test_factorized_reduce_reads_even_and_odd_pixels():
    op = factorized_reduce(1, 2, affine=False).convs[0]
    nn.init.ones_(op.even.weight), nn.init.ones_(op.odd.weight)
    x = torch.arange(1.0, 26).view(1, 1, 5, 5)
    even, odd = op(x)[0]
    assert even.tolist() == [[1, 3, 5], [11, 13, 15], [21, 23, 25]]
    assert odd.tolist() == [[7, 9, 0], [17, 19, 0], [0, 0, 0]]


def test_drop_path():
    y = drop_path(torch.ones(20_000, 2, 1, 1), 0.3)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (y[:, 0] == y[:, 1]).all()  # a whole sample at a time
    assert (y == 0).float().mean().item() == pytest.approx(
        0.3, abs=0.015
    ) and y.mean().item() == pytest.approx(1, abs=0.03)
    skips = [("skip_connect", 0), ("skip_connect", 1)] * 4
    network = Network(
        Genotype(skips, [2, 3, 4, 5], skips, [2, 3, 4, 5]), 4, 3, "cifar", ten_classes
    )
    x = torch.randn(8, 3, 16, 16)
    s0, s1 = network.stem(x)  # the paths of cell 0 are identities, which are kept
    assert torch.equal(network.cells[0](s0, s1, 0.99), network.cells[0](s0, s1, 0.0))
    convs = [("dil_conv_3x3", 0), ("dil_conv_3x3", 1)] * 4
    network = Network(
        Genotype(convs, [2, 3, 4, 5], convs, [2, 3, 4, 5]), 4, 3, "cifar", ten_classes
    )
    network.drop_path = 0.5
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_auxiliary_head_only_in_training():
    network = Network(load_arch("darts_v2"), 4, 6, "cifar", ten_classes, auxiliary_classes=10)
    x = torch.randn(2, 3, 32, 32)
    logits, logits_aux = network(x)
    assert logits.shape == logits_aux.shape == (2, 10)
    logits_aux.sum().backward()  # it reads the output of cell 4 and nothing behind it
    reached = [any(p.grad is not None for p in cell.parameters()) for cell in network.cells]
    assert reached == [True] * 5 + [False]
    assert network.eval()(x).shape == (2, 10)


@pytest.mark.parametrize("stem, smallest", [("cifar", 29), ("imagenet", 193)])
def test_smallest_input_of_the_auxiliary_head(stem, smallest):
    check_auxiliary(smallest, stem, 6)
    network = Network(load_arch("darts_v2"), 4, 6, stem, ten_classes, auxiliary_classes=10)
    network(torch.randn(2, 3, smallest, smallest))
    with pytest.raises(InputError, match="--auxiliary"):
        check_auxiliary(smallest - 1, stem, 6)
    with pytest.raises(RuntimeError, match="[Kk]ernel size"):
        network(torch.randn(2, 3, smallest - 1, smallest - 1))


def test_cosine_and_warmup():
    assert [utils.cosine_lr(1.0, e, 4) for e in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert utils.cosine_lr(0.5, 0, 100, warmup_epochs=5) == pytest.approx(0.05)
    assert utils.cosine_lr(0.5, 5, 100, warmup_epochs=5) == utils.cosine_lr(0.5, 5, 100)


def test_counting_leaves_nothing_behind():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    assert utils.count(build, (1, 3, 32, 32)) == (8 * 27 + 8 + 90, 32 * 32 * 8 * 27 + 80)


def test_a_reduction_of_eight_channels_on_a_large_map():
    """In a process of its own: the CPU kernel of a 1x1 convolution of stride 2 kills it."""
    code = """
import torch
from ops import factorized_reduce
op = factorized_reduce(8, 8, affine=True).to(memory_format=torch.channels_last)
for _ in range(3):
    x = torch.randn(8, 72, 72, 8).permute(0, 3, 1, 2).requires_grad_()
    op(x).sum().backward()
    junk = [torch.randn(n) for n in range(1000, 100000, 1237)]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
