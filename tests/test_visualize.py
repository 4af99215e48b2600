"""visualize.py as a command: which pictures it draws of what, and where."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import cli
import numpy as np
import pytest
import torch
from conftest import photo
from matplotlib.axes import Axes
from PIL import Image

import data
import pretext
import search
import shapes
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_segmentation(tmp_path, monkeypatch, capsys):
    argv = [*SMALL, "--size", "16", "--arch", "darts_v2", "--epochs", "1", "--task", "seg"]
    train.main(train.parse_args([*argv, "--out", str(tmp_path / "t")]))
    drawn = tmp_path / "t" / "predictions.png"
    visualize.main(visualize.parse_args([str(tmp_path / "t")]))
    height = Image.open(drawn).height
    visualize.main(visualize.parse_args([str(tmp_path / "t"), "--images", "2"]))
    assert Image.open(drawn).height < 0.7 * height
    sky, ground = (70, 130, 180), (81, 0, 81)  # Cityscapes' own
    assert count_pixels(drawn, sky) > 1000 and count_pixels(drawn, ground) > 1000

    path = tmp_path / "t" / "result.json"
    result = cli.read_json(path, dict)
    cli.write_json(path, result | {"images": result["images"] | {"classes": ["road"] * 12}})
    visualize.main(visualize.parse_args([str(tmp_path / "t"), "--images", "2"]))
    assert count_pixels(drawn, (128, 64, 128)) > 1000 and not count_pixels(drawn, sky)
    assert capsys.readouterr().out.endswith("t/predictions.png\n")
    cli.write_json(path, result)
    monkeypatch.setattr(data, "load", lambda *_, load=data.load: load("shapes", None, 16, 30))
    assert "not the images that this network was trained on" in error_of(capsys, tmp_path / "t")


def test_names_with_dollars_and_other_bytes(tmp_path):
    rows = [visualize.captioned([torch.zeros(4, 4, dtype=torch.int64)], ["$100_$: k\udce9"])]
    visualize.draw_rows(rows, ["$a_$", "k\udce9"], tmp_path / "x.png")
    visualize.draw_cell(load_arch("darts_v2"), tmp_path / "c.png", "$5_$ \udce9")


@pytest.fixture
def shown(monkeypatch):
    """The rows of the picture that was drawn last, each of (picture, text, colour)."""
    rows = []

    def draw_rows(new, *args, draw=visualize.draw_rows):
        rows[:] = new
        draw(new, *args)

    monkeypatch.setattr(visualize, "draw_rows", draw_rows)
    return rows


@pytest.mark.slow
def test_tasks(tmp_path, shown, monkeypatch):
    class Halves(pretext.Task):  # without code for pictures
        num_classes = 2

        def prepare(self, images, labels, index, train):
            x = self.normalize(images, train)
            return torch.cat([x[..., :16], x[..., 16:]]), torch.arange(2)

    monkeypatch.setitem(pretext.TASKS, "halves", Halves)
    out = tmp_path / "tasks.png"
    tasks = ["rot", "col", "jig", "cls", "seg", "halves"]
    argv = ["--tasks", *tasks, "--images", "3", "--out", str(out)]
    visualize.main(visualize.parse_args(argv))
    assert len(shown) == 3 and out.stat().st_size > 20_000
    texts = [[text for _, text, _ in row] for row in shown]
    assert texts[0][:7] == [
        *["image", "rot: 0°", "rot: 90°", "rot: 180°", "rot: 270°", "col: input", "col: target"]
    ]
    assert texts[0][9:] == ["seg: input", "seg: target", "halves: 0", "halves: 1"]
    for row, (*_, jig, cls, _, _, _, _) in zip(shown, texts):
        image, *views = [picture for picture, _, _ in row]
        for k, view in enumerate(views[:4]):
            np.testing.assert_allclose(np.rot90(view, -k), views[0], atol=1e-6)
        lightness, colors, tiles, _, _, classes, left, right = views[4:]
        straight = np.minimum(  # flipped or not
            abs(colors - image / 255).mean(), abs(colors[:, ::-1] - image / 255).mean()
        )
        assert straight < 0.03 and np.ptp(lightness, 2).max() == 0 < np.ptp(colors, 2).max()
        assert sorted(jig.removeprefix("jig: ").split()) == list("0123")
        assert tiles.shape == (28, 28, 3) and classes.shape == (32, 32)
        whole = np.concatenate([left, right], 1)
        np.testing.assert_allclose(whole, image / 255, atol=1e-6)
        assert cls.removeprefix("cls: ") in shapes.SHAPES


def test_what_tasks_undo():
    """What targets make of the inputs of an evaluation is the image."""
    images, labels, masks = shapes.load_shapes(4, 0)
    dataset = data.ImageSet(images, labels, shapes.SHAPES, masks)
    dataset.mask_classes = ["sky", "ground", *shapes.SHAPES]
    x = images.permute(0, 3, 1, 2)
    for name in ("rot", "jig", "cls"):
        task = pretext.make_task(name, dataset, 32, "cifar", 3, "cpu")
        for k in range(4):
            inputs, y = task.prepare(x[k : k + 1], labels[k : k + 1], torch.tensor([k + 5]), False)
            upright = task.show(task.undo(inputs, y), y)
            if name == "jig":
                solved, _ = task.prepare(x[k : k + 1], None, torch.tensor([0]), False)
                assert not torch.equal(solved, inputs)
                assert torch.equal(upright[0], task.show(solved, torch.tensor([0]))[0])
                continue
            for picture in upright:
                torch.testing.assert_close(picture, images[k] / 255)


def test_pixels_of_class_255_count_where_it_is_one():
    y = torch.full((1, 2, 2), 255)
    logits = torch.zeros(1, 313, 2, 2)
    logits[:, 255, 0, 0] = 1
    assert visualize.describe(pretext.Colorization, y, logits) == [{"accuracy": 0.25}]
    assert visualize.describe(pretext.Segmentation, y, logits[:, :19]) == [{"accuracy": None}]


def predictions_of(capsys, *argv):
    capsys.readouterr()
    visualize.main(visualize.parse_args([*map(str, argv), "--json"]))
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", ["cls", "rot", "col", "jig"])
def test_predictions(tmp_path, shown, capsys, task):
    out = tmp_path / "t"
    argv = [*SMALL, "--size", "16", "--arch", "darts_v2", "--epochs", "1", "--task", task]
    result = train.main(train.parse_args([*argv, "--out", str(out)]))
    found = predictions_of(capsys, out)
    assert found["top1"] == result["final"]
    assert found["loss"] == pytest.approx(result["epochs"][-1]["loss"], rel=1e-6)
    assert len(found["images"]) == len({image["image"] for image in found["images"]}) == 40
    records = sum((image["predictions"] for image in found["images"]), [])
    scores = [record["accuracy"] if task == "col" else record["correct"] for record in records]
    assert 100 * np.mean(scores) == pytest.approx(result["final"])
    assert len(records) == (160 if task == "rot" else 40)

    visualize.main(visualize.parse_args([str(out), "--images", "3"]))
    assert (out / "predictions.png").stat().st_size > 5000
    cells = {"cls": 1, "rot": 5, "col": 3, "jig": 2}[task]
    assert [len(row) for row in shown] == [cells] * 3
    chosen = [found["images"][k]["predictions"] for k in (0, 19, 39)]
    for row, predictions in zip(shown, chosen):
        for (_, text, _), record in zip(row[-len(predictions) :], predictions):
            if task == "col":
                assert text == f"prediction, {record['accuracy']:.0%} right"
                continue
            best, p = next(iter(record["classes"].items()))
            assert text.startswith(f"{'✗✓'[record['correct']]} {best}: {p:.0%}")
            assert record["correct"] == (best == record["truth"]) == ("truth: " not in text)

    photo(90, 60).save(tmp_path / "a.jpg")
    photo(40, 70).convert("L").save(tmp_path / "b c.png")
    files = [str(tmp_path / "a.jpg"), str(tmp_path / "b c.png")]
    found = predictions_of(capsys, out, *files)
    assert found.keys() == {"images"} and [image["image"] for image in found["images"]] == files
    for image in found["images"]:
        (record,) = image["predictions"]
        assert ("truth" in record) == (task == "jig") and ("accuracy" in record) == (task == "col")
    visualize.main(visualize.parse_args([str(out), *files, "--out", str(tmp_path / "p.pdf")]))
    assert [len(row) for row in shown] == [{"rot": 2}.get(task, cells)] * 2
    (tmp_path / "b c.png").write_bytes(b"no image")
    assert "b c.png: unreadable" in error_of(capsys, out, *files)
    assert "none.png" in error_of(capsys, out, tmp_path / "none.png")


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_file_is_seen_as_in_the_evaluation(tmp_path, monkeypatch, capsys, on_disk):
    """Images of 16 bits, darker than others of their data set: the white is that of training."""
    if on_disk:
        monkeypatch.setattr(data, "MAX_BYTES", 1000)
    rng = np.random.default_rng(0)
    for part, label, k in itertools.product(("train", "val"), range(2), range(6)):
        path = tmp_path / "photos" / part / f"class{label}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers((900, 60000)[label], size=(24, 30), dtype=np.uint16)
        Image.fromarray(pixels).save(path)
    argv = ["--dataset", "folder", "--data", str(tmp_path / "photos"), "--size", "16"]
    argv += ["--arch", "darts_v2", "--width", "4", "--layers", "2", "--batch_size", "4"]
    argv += ["--auxiliary", "0", "--epochs", "1", "--workers", "0", "--out", str(tmp_path / "t")]
    result = train.main(train.parse_args(argv))
    assert result["images"]["whites"] == {"I": 65535}
    found = predictions_of(capsys, tmp_path / "t")["images"]
    files = [str(tmp_path / "photos" / "val" / image["image"]) for image in found]
    alone = predictions_of(capsys, tmp_path / "t", *files)["images"]
    for image, file in zip(found, alone):
        (expected,), (record,) = image["predictions"], file["predictions"]
        for name, p in record["classes"].items():
            assert p == pytest.approx(expected["classes"][name], rel=1e-5)


def test_errors_are_one_line(tmp_path, capsys):
    assert "no finished training" in error_of(capsys, "darts_v2", "--json")
    assert "no finished training" in error_of(capsys, "darts_v2", "a.jpg")
    assert "no architecture 'resnet50'" in error_of(capsys, "resnet50")
    assert "neither a finished training nor a search" in error_of(capsys, tmp_path)
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
    lines.clear()
    visualize.draw_history({f"{k}": epochs for k in range(48)}, tmp_path / "alphas.png")
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in lines[:48]}
    assert len(looks) == 48
    assert all(abs(line.get_ydata()[0]) < 0.5 for line in lines[48:96])  # none is near 1


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
