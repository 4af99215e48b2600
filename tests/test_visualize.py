"""visualize.py as a command: which pictures it draws of what, and where."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import cli
import data
import search
import train
import visualize
from genotypes import CELLS, NASBenchCell, load_arch, named_cell, to_entry

ROOT = Path(__file__).parent.parent
SMALL = ["--limit", "40", "--width", "4", "--layers", "2", "--batch_size", "10", "--device", "cpu"]


def run(folder, *argv):
    """The command, run in a folder; what it prints, one line a picture."""
    command = [sys.executable, str(ROOT / "visualize.py"), *map(str, argv)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def error_of(capsys, *argv):
    with pytest.raises(SystemExit) as exit_:
        cli.run(visualize.main, visualize.parse_args, list(map(str, argv)))
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "ending, magic", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_a_cell_by_its_name(tmp_path, ending, magic):
    assert run(tmp_path, "amoebanet", "--out", f"cell.{ending}") == [f"cell.{ending}"]
    assert (tmp_path / f"cell.{ending}").read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [f"cell.{ending}"]


def test_cells_of_files(tmp_path):
    (tmp_path / "own").mkdir()
    cli.write_json(tmp_path / "own" / "genotype.json", to_entry(named_cell("nasnet")))
    cli.write_json(tmp_path / "archs.json", [{"id": "07", **to_entry(named_cell("pdarts"))}])
    assert run(tmp_path, "own/genotype.json") == ["own.png"]
    assert run(tmp_path, "archs.json:07") == ["07.png"]
    (tmp_path / "darts_v2").mkdir()  # a folder does not hide a name
    assert run(tmp_path, "darts_v2") == ["darts_v2.png"]
    sizes = [Image.open(tmp_path / name).width for name in ("own.png", "07.png")]
    assert sizes[0] > sizes[1] > 1000  # five nodes and four


def test_a_search(tmp_path):
    out = tmp_path / "s"
    argv = [*SMALL, "--task", "rot", "--epochs", "2", "--partial", "2", "--out", str(out)]
    search.main(search.parse_args(argv))
    names = ("cell.png", "alphas.png", "weights.png")
    drawn = {name: (out / name).read_bytes() for name in names}
    for name in drawn:
        (out / name).unlink()
    assert run(tmp_path, "s") == ["s/alphas.png", "s/weights.png", "s/cell.png"]
    # as the search drew them
    assert {name: (out / name).read_bytes() for name in drawn} == drawn
    assert run(tmp_path, "s/genotype.json") == ["s.png"]  # the cell alone, by the folder's name
    assert Image.open(tmp_path / "s.png").size == Image.open(out / "cell.png").size
    (out / "cell.png").unlink()
    assert run(tmp_path, "s", "--out", "found.pdf") == [
        "s/alphas.png",
        "s/weights.png",
        "found.pdf",
    ]
    assert not (out / "cell.png").exists() and (tmp_path / "found.pdf").stat().st_size > 5000


def count_pixels(path, color):
    """How many pixels of a picture have an RGB colour, up to rounding."""
    pixels = np.array(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - color).max(-1) <= 1).sum()


def test_predictions(tmp_path, monkeypatch, capsys):
    argv = [*SMALL, "--size", "16", "--arch", "darts_v2", "--epochs", "1", "--task", "seg"]
    train.main(train.parse_args([*argv, "--out", str(tmp_path / "t")]))
    drawn = tmp_path / "t" / "predictions.png"
    assert run(tmp_path, "t") == ["t/predictions.png"]
    height = Image.open(drawn).height
    visualize.main(visualize.parse_args([str(tmp_path / "t"), "--images", "2"]))
    assert height == 2 * Image.open(drawn).height
    sky, road = 255 * np.array(visualize.colormaps["tab20"].colors[0]), (128, 64, 128)
    assert count_pixels(drawn, sky) > 1000 and not count_pixels(drawn, road)

    # Cityscapes has colours of its own, in which class 0 is road.
    result = cli.read_json(tmp_path / "t" / "result.json", dict)
    result["identity"]["dataset"] = "cityscapes"
    cli.write_json(tmp_path / "t" / "result.json", result)
    with pytest.raises(cli.InputError, match="result.json was written with dataset = 'cityscapes'"):
        visualize.main(visualize.parse_args([str(tmp_path / "t")]))
    checkpoint = torch.load(tmp_path / "t" / "checkpoint.pt", weights_only=True)
    checkpoint["identity"]["dataset"] = "cityscapes"
    torch.save(checkpoint, tmp_path / "t" / "checkpoint.pt")
    monkeypatch.setattr(data, "load", lambda name, *args, load=data.load: load("shapes", *args))
    visualize.main(visualize.parse_args([str(tmp_path / "t"), "--images", "2"]))
    assert count_pixels(drawn, road) > 1000 and not count_pixels(drawn, sky)
    capsys.readouterr()
    cli.write_json(tmp_path / "t" / "result.json", result | {"task": "rot"})
    assert "t was trained on rot" in error_of(capsys, tmp_path / "t")


def test_errors_are_one_line(tmp_path, capsys):
    assert "no architecture 'resnet50'" in error_of(capsys, "resnet50")
    assert "genotype.json" in error_of(capsys, tmp_path)
    assert "cell.xyz" in error_of(capsys, "darts_v2", "--out", tmp_path / "cell.xyz")
    missing = tmp_path / "none" / "cell.png"
    assert str(missing) in error_of(capsys, "darts_v2", "--out", missing)
    cell = NASBenchCell([[0, 1], [0, 0]], ["input", "output"])
    cli.write_json(tmp_path / "archs.json", [{"id": "a", **to_entry(cell)}])
    line = error_of(capsys, f"{tmp_path / 'archs.json'}:a")
    assert "only DARTS cells are drawn" in line and "archs.json:a" in line
    cli.write_json(tmp_path / "genotype.json", to_entry(named_cell("nasnet")))
    line = error_of(capsys, tmp_path)
    assert "of no search" in line and "genotype.json" in line
    assert {path.name for path in tmp_path.iterdir()} == {"archs.json", "genotype.json"}


@pytest.mark.parametrize("name", CELLS)
def test_every_op_is_shown_and_no_two_labels_meet(tmp_path, monkeypatch, name):
    shown = []

    def text(self, x, y, label, text=Axes.text, **style):
        shown.append(text(self, x, y, label, **style))
        return shown[-1]

    monkeypatch.setattr(Axes, "text", text)
    genotype = load_arch(name)
    visualize.draw_cell(genotype, tmp_path / "cell.png", name)
    ops = [op.replace("_", " ") for op, _ in genotype.normal + genotype.reduce]
    nodes = [str(2 + k) for k in range(len(genotype.normal) // 2)]
    assert sorted(label.get_text() for label in shown) == sorted(
        [*ops, *2 * nodes, *2 * ["$c_{k-2}$", "$c_{k-1}$", "concat"]]
    )
    boxes = [label.get_window_extent() for label in shown]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    whole = shown[0].figure.bbox
    assert all(whole.containsx(x) and whole.containsy(y) for box in boxes for x, y in box.corners())


def test_alpha_history_has_a_line_for_each_search(tmp_path, monkeypatch):
    lines = []

    def plot(self, *args, plot=Axes.plot, **style):
        lines.extend(plot(self, *args, **style))

    monkeypatch.setattr(Axes, "plot", plot)
    epochs = [
        {"epoch": k, "entropy": [1.0, 0.9], "skips": [0, 2], "convs": [8, 4]} for k in (1, 2, 3)
    ]
    histories = {f"search {k}": epochs for k in range(9)}
    visualize.draw_history(histories, tmp_path / "alphas.png")
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines[:9]}
    assert len(lines) == 2 * 3 * 9 and len(looks) == 9  # no two searches look alike
    middle = [line.get_ydata().tolist() for line in lines[4::9]]
    assert middle == [[v] * 3 for v in (1.0, 0, 8, 0.9, 2, 4)]  # equal counts stand around these
    assert len({tuple(line.get_ydata()) for line in lines[9:18]}) == 9


@pytest.mark.parametrize("partial", [False, True])
def test_weights_of_ops_and_edges(tmp_path, monkeypatch, partial):
    cells, frames, shown = [], [], []
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **style: cells.append(x))
    monkeypatch.setattr(Axes, "add_patch", lambda self, patch: frames.append(patch.get_xy()))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **style: shown.append((x, y, text)))
    epoch = {"alphas": np.zeros((2, 14, 8)).tolist(), "betas": np.zeros((2, 14)).tolist()}
    epoch["alphas"][0][13] = [0] * 7 + [np.log(7)]  # edge 4 -> 5: 1/14 each, the last op 1/2
    epoch = epoch if partial else {"alphas": epoch["alphas"]}
    visualize.draw_weights(named_cell("darts_v2"), epoch, tmp_path / "weights.png", "x:")
    assert [cell.shape for cell in cells] == 2 * [(14, 9 if partial else 8)]
    texts = {(x, y): text for x, y, text in shown[: len(shown) // 2]}  # of the normal cell
    assert [texts[x, 13] for x in (0, 6, 7)] == ["0.07", "0.07", "0.50"] and texts[0, 0] == "0.12"
    edges = ["0.50"] * 2 + ["0.33"] * 3 + ["0.25"] * 4 + ["0.20"] * 5
    assert [texts.get((8, y)) for y in range(14)] == (edges if partial else [None] * 14)
    assert frames[:2] == [(3.5, -0.5), (3.5, 0.5)] and len(frames) == 16  # sep3-0 sep3-1
    assert frames[7] == (5.5, 10.5)  # dil3-2 of node 5


def test_needs_no_torch():
    code = "import sys, visualize; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
