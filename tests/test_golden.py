"""The networks are the paper's: reference values of networks with weights filled by a formula, in float64."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import load_arch, nasbench_hash, parse_nasbench
from model_eval import NASBenchNetwork, Network
from model_search import MixedEdges, Supernet, derive
from pretext import BINS, ASPPHead, PixelHead, PooledHead, color_tables, rgb_to_lab
from utils import count_macs, count_params


@pytest.fixture
def golden(shared_data):
    return json.loads((shared_data / "golden.json").read_text())


def fill(network):
    """Weights that depend on a tensor's shape alone, copy by copy where a tensor holds several."""
    copies = {}
    network.double()
    for module in network.modules():
        if isinstance(module, MixedEdges):
            copies |= {
                id(inner): module.copies for op in module.copied.values() for inner in op.modules()
            }

    def count(tensor):
        return torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                for part in module.weight.chunk(copies.get(id(module), 1)):
                    part.copy_(torch.cos(1.7 * count(part)) * math.sqrt(2 / part[0].numel()))
                if module.bias is not None:
                    module.bias.copy_(0.1 * torch.sin(count(module.bias)))
            elif isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.copy_(1 + 0.1 * torch.cos(count(module.weight)))
                module.bias.copy_(0.1 * torch.sin(count(module.bias)))
    return network


def wave(shape):
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(0.37 * i) + torch.cos(0.011 * i)).view(shape)


def check(tensor, expected):
    assert list(tensor.shape) == expected["shape"]
    norm = expected["l2"]
    flat = tensor.detach().flatten()
    assert flat[:6].tolist() == pytest.approx(expected["first"], rel=1e-6, abs=1e-8)
    assert flat.norm().item() == pytest.approx(norm, rel=1e-6, abs=5.1e-8)  # it has seven decimals
    assert flat.sum().item() == pytest.approx(expected["sum"], rel=1e-6, abs=1e-6 * norm)


def task_of(name, num_classes, in_channels=3, views=1, channels=None, rates=None):
    """As much of a task as a network needs."""
    heads = {
        "col": lambda C: PixelHead(C, num_classes),
        "seg": lambda C: ASPPHead(C, num_classes, channels, rates),
    }
    head = heads.get(name, lambda C: PooledHead(C, num_classes, views))
    return SimpleNamespace(in_channels=in_channels, reductions=1 if name == "seg" else 2, head=head)


@pytest.mark.parametrize("name", ["cifar_cls", "cifar_jig", "imagenet_jig", "cityscapes_seg"])
def test_supernet(golden, name):
    entry = golden["supernet"][name]
    shape = entry["input"]
    views = shape[1] if entry["task"] == "jig" else 1
    task = task_of(entry["task"], entry["num_classes"], shape[-3], views, 64, [6])
    stem = "cifar" if name.startswith("cifar") else "imagenet"
    supernet = fill(Supernet(entry["C"], entry["layers"], stem, task))
    k = torch.arange(14 * 8, dtype=torch.float64).view(14, 8)
    alphas = torch.stack([0.3 * torch.cos(3 * k), 0.3 * torch.sin(3 * k)]).requires_grad_()
    logits = supernet(wave(shape).view(-1, *shape[-3:]), alphas)
    pixels = logits.numel() // entry["num_classes"]
    labels = torch.arange(pixels) % entry["num_classes"]
    loss = F.cross_entropy(logits, labels.view(len(logits), *logits.shape[2:]))
    loss.backward()
    check(logits, entry["logits"])
    assert loss.item() == pytest.approx(entry["loss"], rel=1e-6)
    for i, cell in enumerate(("normal", "reduce")):
        check(alphas.grad[i], entry[f"grad_alphas_{cell}"])
    assert count_params(supernet) == entry["params"]
    genotype = derive(alphas)
    for field, value in entry["genotype"].items():
        assert [list(v) if isinstance(v, tuple) else v for v in getattr(genotype, field)] == value


@pytest.mark.parametrize("name", ["cifar_darts_v2", "cifar_col", "imagenet_col", "cityscapes_seg"])
def test_network(golden, name):
    entry = golden["network"][name]
    classes = entry["num_classes"]
    task = task_of(
        entry["task"],
        classes,
        entry["input"][1],
        1,
        entry.get("aspp_channels"),
        entry.get("aspp_rates"),
    )
    stem = "cifar" if name.startswith("cifar") else "imagenet"
    auxiliary = classes if entry["auxiliary"] else 0
    network = Network(
        load_arch(entry["genotype"]), entry["C"], entry["layers"], stem, task, auxiliary
    )
    assert count_params(network) == entry["params"]
    outputs = fill(network)(wave(entry["input"]))
    if auxiliary:
        outputs, logits_aux = outputs
        check(logits_aux, entry["logits_aux"])
    check(outputs, entry["logits"])


def test_paper_sizes(golden):
    assert len(golden["paper_size"]) == 13
    for key, entry in golden["paper_size"].items():
        name, arch = key.split("/")
        task = (
            task_of("cls", 1000)
            if name == "cls"
            else task_of("seg", 19, channels=256, rates=[6, 12, 18])
        )
        task.inputs_per_target, task.input_size = 1, 224

        def build(auxiliary=0, arch=arch, entry=entry, task=task):
            return Network(
                load_arch(arch), entry["width"], entry["layers"], "imagenet", task, auxiliary
            )

        with torch.device("meta"):
            assert count_params(build()) == entry["params"], key
            if name == "cls":
                assert count_params(build(1000)) == entry["params_with_aux"], key
        if name == "cls":
            assert count_macs(build, task) == entry["macs_224"], key


def test_nasbench(golden):
    task = task_of("cls", 10)
    assert len(golden["nasbench"]) == 4
    for key, entry in golden["nasbench"].items():
        cell = parse_nasbench(entry, key)
        assert nasbench_hash(cell) == entry["hash"]
        with torch.device("meta"):
            assert (
                count_params(NASBenchNetwork(cell, 128, 9, "cifar", task))
                == entry["params_width128"]
            )
        check(
            fill(NASBenchNetwork(cell, 16, 9, "cifar", task))(wave((2, 3, 32, 32))),
            entry["width16_logits"],
        )


def test_colors(golden):
    lightness, bins = color_tables()
    for entry in golden["pretext"]["colors"]:
        r, g, b = entry["rgb"]
        lab = rgb_to_lab(torch.tensor([r, g, b]))
        assert lab.tolist() == pytest.approx(entry["lab"], abs=5.1e-6)  # which has five decimals
        index = bins[r * 65536 + g * 256 + b].item()
        assert index == entry["bin"] and list(BINS[index]) == entry["center"]
        assert lightness[r * 65536 + g * 256 + b].item() == pytest.approx(entry["lab"][0], abs=2e-5)
