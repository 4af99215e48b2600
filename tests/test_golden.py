"""The networks are the paper's: reference values of networks with weights filled by a formula, in
float64, and sizes of the networks as published. reference.json holds the values."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import count_params

from genotypes import load_arch, nasbench_hash, parse_nasbench
from model_eval import NASBenchNetwork, Network
from model_search import MixedEdges, Supernet, derive
from pretext import BINS, ASPPHead, PixelHead, PooledHead, color_tables, rgb_to_lab
from utils import count

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))


def fill(network):
    """Weights that depend on a tensor's shape alone, copy by copy where a tensor holds several."""
    copies = {}
    network.double()
    for module in network.modules():
        if isinstance(module, MixedEdges):
            inside = [inner for op in module.per_edge.values() for inner in op.modules()]
            copies |= {inner: module.copies for inner in inside}

    def count(tensor):
        return torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                for part in module.weight.chunk(copies.get(module, 1)):
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


def head_of(task, num_classes, tiles=1, channels=None, rates=None):
    """The task's head, a function C -> module. `channels` and `rates` are those of ASPP."""
    if task == "col":
        return lambda C: PixelHead(C, num_classes)
    if task == "seg":
        return lambda C: ASPPHead(C, num_classes, channels, rates)
    return lambda C: PooledHead(C, num_classes, tiles)


@pytest.mark.parametrize("name", [*REFERENCE["supernet"], *REFERENCE["supernet_partial"]])
def test_supernet(name):
    entry = {**REFERENCE["supernet"], **REFERENCE["supernet_partial"]}[name]
    task, classes, shape = entry["task"], entry["num_classes"], entry["input"]
    head = head_of(task, classes, shape[1] if task == "jig" else 1, 64, [6])
    stem = "cifar" if name.startswith("cifar") else "imagenet"
    reductions = 1 if task == "seg" else 2
    K = entry.get("K", 1)
    supernet = fill(
        Supernet(entry["C"], entry["layers"], stem, head, shape[-3], reductions, partial=K)
    )
    k = torch.arange(14 * 8, dtype=torch.float64).view(14, 8)
    alphas = torch.stack([0.3 * torch.cos(3 * k), 0.3 * torch.sin(3 * k)]).requires_grad_()
    arch = {"alphas": alphas}
    if K > 1:
        e = torch.arange(14, dtype=torch.float64)
        betas = torch.stack([0.2 * torch.cos(5 * e), 0.2 * torch.sin(5 * e)])
        arch["betas"] = betas.requires_grad_()
    logits = supernet(wave(shape).view(-1, *shape[-3:]), **arch)
    labels = torch.arange(logits.numel() // classes) % classes  # one for each image or pixel
    loss = F.cross_entropy(logits, labels.view(len(logits), *logits.shape[2:]))
    loss.backward()
    check(logits, entry["logits"])
    assert loss.item() == pytest.approx(entry["loss"], rel=1e-6)
    for i, cell in enumerate(("normal", "reduce")):
        for kind, values in arch.items():
            check(values.grad[i], entry[f"grad_{kind}_{cell}"])
    assert count_params(supernet) == entry["params"]
    assert json.loads(json.dumps(derive(**arch)._asdict())) == entry["genotype"]


@pytest.mark.parametrize("name", REFERENCE["network"])
def test_network(name):
    entry = REFERENCE["network"][name]
    task, classes = entry["task"], entry["num_classes"]
    network = Network(
        load_arch(entry["genotype"]),
        entry["C"],
        entry["layers"],
        stem="cifar" if name.startswith("cifar") else "imagenet",
        head=head_of(task, classes, 1, entry.get("aspp_channels"), entry.get("aspp_rates")),
        in_channels=entry["input"][1],
        reductions=1 if task == "seg" else 2,
        auxiliary_classes=classes if entry["auxiliary"] else 0,
    )
    assert count_params(network) == entry["params"]
    outputs = fill(network)(wave(entry["input"]))
    if entry["auxiliary"]:
        outputs, logits_aux = outputs
        check(logits_aux, entry["logits_aux"])
    check(outputs, entry["logits"])


@pytest.mark.parametrize("key", REFERENCE["paper_size"])
def test_paper_size(key):
    """Parameters with and without the auxiliary head, multiply-accumulates at 224 x 224."""
    entry = REFERENCE["paper_size"][key]
    task, arch = key.split("/")
    segmentation = task == "seg"

    def build(auxiliary_classes=0):
        return Network(
            load_arch(arch),
            entry["width"],
            entry["layers"],
            "imagenet",
            head_of("seg", 19, 1, 256, [6, 12, 18]) if segmentation else head_of("cls", 1000),
            reductions=1 if segmentation else 2,
            auxiliary_classes=auxiliary_classes,
        )

    with torch.device("meta"):
        assert count_params(build()) == entry["params"]
        assert count_params(build(0 if segmentation else 1000)) == entry["params_with_aux"]
    if not segmentation:
        assert count(build, (1, 3, 224, 224))[1] == entry["macs_224"]


@pytest.mark.parametrize("key", REFERENCE["nasbench"])
def test_nasbench(key):
    entry = REFERENCE["nasbench"][key]
    cell, head = parse_nasbench(entry, key), head_of("cls", 10)
    assert nasbench_hash(cell) == entry["hash"]
    with torch.device("meta"):
        network = NASBenchNetwork(cell, 128, 9, "cifar", head)
    assert count_params(network) == entry["params_width128"]
    network = fill(NASBenchNetwork(cell, 16, 9, "cifar", head))
    check(network(wave((2, 3, 32, 32))), entry["width16_logits"])


@pytest.mark.parametrize("entry", REFERENCE["colors"], ids=lambda entry: str(entry["rgb"]))
def test_color(entry):
    lightness, bins = color_tables()
    r, g, b = entry["rgb"]
    lab = rgb_to_lab(torch.tensor([r, g, b]))
    assert lab.tolist() == pytest.approx(entry["lab"], abs=5.1e-6)  # which has five decimals
    index = bins[r * 65536 + g * 256 + b].item()
    assert index == entry["bin"] and list(BINS[index]) == entry["center"]
    assert lightness[r * 65536 + g * 256 + b].item() == pytest.approx(entry["lab"][0], abs=2e-5)


def test_reference_is_complete():
    sizes = {
        name: len(REFERENCE[name])
        for name in ("supernet", "supernet_partial", "network", "paper_size", "nasbench")
    }
    expected = {"supernet": 4, "supernet_partial": 1, "network": 4, "paper_size": 13, "nasbench": 4}
    assert sizes == expected
