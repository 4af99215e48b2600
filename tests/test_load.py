"""A network of a finished run, or of a cell alone, in one's own code."""

import copy
import importlib.util

import cli
import pytest
import torch
from conftest import count_params

import genotypes
import image_files
import model_eval
import train
import utils
from genotypes import load_arch

SMALL = ["--limit", "20", "--width", "4", "--layers", "3", "--batch_size", "10", "--device", "cpu"]


def train_and_record(monkeypatch, out, *argv):
    """The result of a training, and inputs, targets and logits of its last evaluation."""
    batches = []

    def evaluate(network, task, parts, autocast, evaluate=utils.evaluate):
        parts = list(parts)
        result = evaluate(network, task, parts, autocast)
        batches[:] = []
        for part in parts:
            x, y = task.prepare(*part, train=False)
            with torch.inference_mode():
                batches.append((x, y, network(x)))
        return result

    monkeypatch.setattr(utils, "evaluate", evaluate)
    result = train.main(train.parse_args([*SMALL, *argv, "--epochs", "1", "--out", str(out)]))
    monkeypatch.undo()
    return result, batches


@pytest.mark.parametrize(
    "argv",
    [
        ["--task", "cls", "--arch", "darts_v2", "--auxiliary", "0.4"],
        ["--task", "jig", "--arch", "pdarts", "--size", "16", "--precise_bn", "20"],
        ["--task", "seg", "--arch", "unnas_imagenet_rot"],
    ],
)
def test_a_loaded_network_is_the_trained_one(tmp_path, monkeypatch, argv):
    result, batches = train_and_record(monkeypatch, tmp_path / "t", *argv)
    network, task = model_eval.load_network(tmp_path / "t")
    assert not network.training and batches
    meter = utils.Meter(task)
    with torch.inference_mode():
        for x, y, logits in batches:
            assert torch.equal(network(x), logits)
            meter.update(task.loss(logits, y), logits, y)
            maps = network.features(x)
            assert torch.equal(network.head(maps, x.shape[-2:]), logits)
            assert torch.equal(network.cell_outputs(x)[-1], maps)
    assert meter.result()[task.metric] == result["final"]
    assert count_params(network) == result["params"]


def test_a_network_of_a_cell_alone():
    x = torch.randn(2, 3, 64, 64)
    arch = load_arch("unnas_imagenet_rot")
    settings = dict(width=8, layers=4, stem="imagenet", num_classes=7)
    network = model_eval.build_network(arch, **settings).eval()
    assert network(x).shape == (2, 7) and network.features(x).shape == (2, 128, 2, 2)
    sizes = [tuple(maps.shape[1:]) for maps in network.cell_outputs(x)]
    assert sizes == [(32, 8, 8), (64, 4, 4), (128, 2, 2), (128, 2, 2)]
    edges = [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    cell = genotypes.NASBenchCell(edges, ["input", "conv3x3-bn-relu", "output"])
    network = model_eval.build_network(cell, 8, 3, "cifar", num_classes=7).eval()
    assert network(x).shape == (2, 7) and network.features(x).shape == (2, 32, 16, 16)


def test_export():
    arch = load_arch("amoebanet")
    network = model_eval.build_network(arch, 4, 3, "imagenet", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(exported(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="needs onnx and onnxscript")
def test_onnx(tmp_path):
    network = model_eval.build_network(load_arch("darts_v2"), 4, 3, "cifar", num_classes=7).eval()
    torch.onnx.export(network, (torch.randn(2, 3, 32, 32),), tmp_path / "x.onnx", dynamo=True)
    assert (tmp_path / "x.onnx").stat().st_size > 10_000


def test_what_is_no_trained_network(tmp_path, monkeypatch):
    argv = ["--task", "rot", "--arch", "darts_v2"]
    train.main(train.parse_args([*SMALL, *argv, "--epochs", "1", "--out", str(tmp_path)]))
    path = tmp_path / "result.json"
    result = cli.read_json(path, dict)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    def load(message, changed, network=checkpoint["network"]):
        cli.write_json(path, changed)
        torch.save(checkpoint | {"network": network}, tmp_path / "checkpoint.pt")
        with pytest.raises(cli.InputError, match=message) as error:
            model_eval.load_network(tmp_path)
        assert "\n" not in str(error.value)

    load("not the network of its result.json", result | {"images": None})
    load("not the network of its result.json", result, {"stem.0.weight": torch.zeros(3)})
    load("not the network of its result.json", result, [1, 2])
    other = genotypes.to_entry(load_arch("pdarts"))["genotype"]
    load("was written with genotype", result | {"genotype": other})
    other = copy.deepcopy(result)
    other["identity"]["width"] = 6
    load("was written with width = 6, this run has 4", other)
    for name in ("checkpoint.pt", "checkpoint.old.pt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(cli.InputError, match="no checkpoint.pt"):
        model_eval.load_network(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="result.json"):
        model_eval.load_network(tmp_path)


def test_the_images_need_not_be_there(tmp_path, monkeypatch):
    argv = ["--task", "cls", "--arch", "darts_v2"]
    train.main(train.parse_args([*SMALL, *argv, "--epochs", "1", "--out", str(tmp_path)]))
    monkeypatch.setattr(image_files, "Image", None)
    monkeypatch.setattr("data.read", None)
    _, task = model_eval.load_network(tmp_path)
    assert task.classes[:2] == ["ball", "box"] and task.num_classes == 10
