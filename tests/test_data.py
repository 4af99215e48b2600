import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import cli
import numpy as np
import pytest
import torch
from cli import InputError
from conftest import photo
from PIL import Image, ImageOps
from scipy import stats
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, Cityscapes

import data
import genotypes
import image_files
import pretext
import search
import shapes
import train
import visualize
from image_files import View


def said(train_set):
    return " | ".join(train_set.notes)


@pytest.fixture
def odd_files(tmp_path):
    """A flat folder with every kind of image that users have."""
    root = tmp_path / "photos"
    root.mkdir()
    for k in range(12):
        photo(60 + k, 48, k).save(root / f"plain{k:02}.jpg")
    photo(40, 50).convert("L").save(root / "grey.jpg")
    photo(40, 50).convert("CMYK").save(root / "cmyk.jpg")
    photo(40, 50).convert("RGBA").save(root / "alpha.png")
    photo(40, 50).convert("P").save(root / "palette.gif")
    photo(40, 50).convert("1").save(root / "bits.png")
    photo(500, 1).save(root / "line.png")
    photo(40, 50).save(root / "really_a_png.JPEG", format="PNG")
    Image.fromarray((np.mgrid[0:1:40j, 0:1:50j][1] * 65535).astype(np.uint16)).save(
        root / "sixteen.png"
    )
    Image.fromarray(np.mgrid[0:1:40j, 0:1:50j][1].astype(np.float32)).save(root / "float.tiff")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    photo(64, 64).save(root / "turned.jpg", exif=exif)
    (root / "sub").mkdir()
    photo(33, 77).save(root / "sub" / "deep.bmp")
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.jpg").write_text("not an image")
    return root


def test_any_mode_and_size(odd_files):
    train, test = data.load("folder", odd_files, size=32)
    assert (len(train), len(test)) == (21, 2)  # a tenth is held out
    assert train.labels is None and not train.unreadable and not test.unreadable
    assert train.images.shape == (21, 32, 32, 3) and train.images.dtype == torch.uint8
    images = {
        os.fsdecode(name): part.images[i].numpy()
        for part in (train, test)
        for i, name in enumerate(part.names)
    }
    assert set(train.names) & set(test.names) == set() and "sub/deep.bmp" in images

    def gradient(name, axis):
        line = images[name].astype(int).mean(axis=1 - axis)  # (32, 3) along the axis
        return line[-1] - line[0]

    assert (
        gradient("plain00.jpg", 1)[0] > 150 and gradient("plain00.jpg", 0)[1] > 200
    )  # the central square of 60 x 48
    assert abs(gradient("grey.jpg", 0)).min() > 50
    assert gradient("cmyk.jpg", 1)[0] > 150 and gradient("alpha.png", 1)[0] > 200
    assert (
        gradient("sixteen.png", 1).min() > 150 and gradient("float.tiff", 1).min() > 150
    )  # not clipped to white
    # The file has red growing to the right; turned clockwise it grows downwards.
    assert gradient("turned.jpg", 0)[0] > 200 and abs(gradient("turned.jpg", 1)[0]) < 20


def test_unreadable_files_are_named(odd_files, capsys):
    content = (odd_files / "plain03.jpg").read_bytes()
    (odd_files / "cut.jpg").write_bytes(content[: len(content) // 2])
    (odd_files / "empty.png").write_bytes(b"")
    (odd_files / "text.jpg").write_text("no image")
    train, test = data.load("folder", odd_files)
    names = {path.rsplit("/", 1)[1] for part in (train, test) for path in part.unreadable}
    assert names == {"cut.jpg", "empty.png", "text.jpg"} and len(train) + len(test) == 23
    assert not test.unreadable
    data.main(data.parse_args(["--dataset", "folder", "--data", str(odd_files)]))
    out = capsys.readouterr().out
    assert "cut.jpg" in out and "labels: none" in out and "RGB 60 x 48" in out


def test_size_that_fits_the_photos(tmp_path, odd_files, monkeypatch):
    train, _ = data.load("folder", odd_files)
    assert (
        train.size == 32
        and "from the shorter sides of 23 images: 1 to 64 pixels, median 48" in said(train)
    )
    for k in range(30):
        photo(170, 200 + k).save(odd_files / f"large{k}.png")
    train, test = data.load("folder", odd_files, limit=4)  # the size is that of the whole folder
    assert train.size == test.size == 160 and data.load("folder", odd_files, size=31)[0].size == 31
    monkeypatch.setattr(data, "MAX_BYTES", 4 * 3 * 160 * 160 * 52)  # there are 53
    assert data.load("folder", odd_files)[0].size == 32


@pytest.mark.parametrize("folders", [("train",), ("train", "val")])
def test_a_folder_that_does_not_fit_in_memory(tmp_path, monkeypatch, folders):
    """It is read from disk; what is held out, the labels and the hash stay as they are."""
    root = make_labelled(tmp_path, count=10, folders=folders)
    in_memory = data.load("folder", root, limit=15)
    monkeypatch.setattr(data, "MAX_BYTES", 3 * 32 * 32 * 16)
    on_disk = data.load("folder", root, limit=15)
    line = "more than 0 GiB of pixels: read from disk, in random crops"
    assert line in on_disk[0].notes and line not in in_memory[0].notes
    assert data.split_hash(*on_disk) == data.split_hash(*in_memory)
    for here, there in zip(in_memory, on_disk):
        assert isinstance(here, data.ImageSet) and isinstance(there, image_files.ImageFiles)
        assert here.names.tolist() == there.names.tolist() and here.size == there.size == 32
        assert here.labels.tolist() == there.labels.tolist() and here.classes == there.classes
    (images, _, index), *_ = data.batches(on_disk[0], view(), 4, "cpu", seed=0)
    assert images.shape == (4, 3, 32, 32)
    whole = in_memory[0].images[index].permute(0, 3, 1, 2)
    assert not torch.equal(images, whole) and (images.float() - whole).abs().mean() < 60


def test_what_a_folder_leaves_out_is_counted(tmp_path):
    root = make_labelled(tmp_path, folders=("train", "val", "test", "old"))
    (root / "README").write_text("")
    photo(20, 20).save(root / "beside.png")
    train, test = data.load("folder", root, limit=6)
    assert train.notes[0] == "left out: 17 outside the folders that are used, 1 without an ending"
    assert "left out: 0 unreadable" in train.notes and test.notes == []
    assert f"{root}: 6 images to train, 6 to evaluate" in train.notes
    for name in ("train", "old"):  # all else beside val/ and test/ is trained on
        (root / name).rename(root / f"{name}_photos")
    assert len(data.load("folder", root)[0]) == 17


def make_labelled(root, classes=("cat", "dog"), count=4, folders=("train", "val")):
    for folder in folders:
        for c, name in enumerate(classes):
            (root / folder / name).mkdir(parents=True)
            for k in range(count):
                photo(36, 36, 10 * c + k).save(root / folder / name / f"{k}.png")
    return root


def test_labelled_folder(tmp_path, capsys):
    root = make_labelled(tmp_path)
    train, test = data.load("folder", root)
    assert (
        train.classes == ["cat", "dog"]
        and train.labels.tolist() == test.labels.tolist() == [0] * 4 + [1] * 4
    )
    data.main(data.parse_args(["--dataset", "folder", "--data", str(root)]))
    out = capsys.readouterr().out
    assert "  cat: 4" in out and "labels: 2 classes" in out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_whose_name_is_no_text(tmp_path):
    root = make_labelled(tmp_path, classes=("caf\udce9", "dog"))
    small = "--size 16 --width 4 --layers 2 --epochs 1 --batch_size 4 --device cpu".split()
    argv = ["--arch", "darts_v2", "--dataset", "folder", "--data", str(root), *small]
    train.main(train.parse_args([*argv, "--out", str(tmp_path / "out")]))
    result = genotypes.read_result(tmp_path / "out" / "result.json")
    assert result["images"]["classes"] == ["caf\\udce9", "dog"]


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_one_class_is_none(tmp_path, capsys, name):
    """A level too many would be learned perfectly."""
    for part in ("train", "val"):
        make_labelled(tmp_path / part / "images", folders=("",))
        for k in range(3):
            photo(20, 20, k).save(tmp_path / part / "images" / f"{k}.png")
    train_set, _ = data.load(name, tmp_path)
    assert train_set.labels is None and "only one class, images, with the folders cat, dog" in (
        train_set.why_no_labels
    )
    with pytest.raises(InputError, match="task cls needs labels: .* only one class, images"):
        pretext.make_task("cls", train_set, 32, "cifar", 2, "cpu")
    data.main(data.parse_args(["--dataset", name, "--data", str(tmp_path)]))
    assert "labels: none" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_links_that_lead_back_and_pipes(tmp_path):
    root = make_labelled(tmp_path / "photos", folders=("train",))
    (root / "train" / "cat" / "back").symlink_to(root)
    (root / "train" / "cat" / "self").symlink_to(root / "train" / "cat")
    (root / "train" / "again").symlink_to(root / "train" / "dog")
    os.mkfifo(root / "train" / "dog" / "pipe.jpg")
    train_set, test_set = data.load("folder", root)
    names = [*train_set.names, *test_set.names]
    assert len(set(names)) == 8
    (root / ".thumbs").mkdir()
    train_set, test_set = data.load("folder", root)
    assert "left out: 3 links to folders seen before, 1 hidden folders" in said(train_set)
    assert "left out: 1 unreadable" in said(train_set)
    ((path, why),) = train_set.unreadable.items()
    assert path.endswith("/pipe.jpg") and why == "not a regular file"
    on_disk, _ = data.load("imagenet22k", root / "train")
    assert len(on_disk) == 9 and len(on_disk.classes) == 2
    on_disk.examine(torch.arange(9))
    assert [Path(path).name for path in on_disk.unreadable] == ["pipe.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="permissions")
def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    """For root, who may read all folders, as for others."""
    root, scandir = make_labelled(tmp_path), os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    train_set, _ = data.load("folder", root)
    assert len(train_set) == 4
    message = f"1 folder that cannot be read, {root}/train/dog: Permission denied"
    assert message in said(train_set)


def test_labelled_folder_without_evaluation_part(tmp_path):
    train, test = data.load("folder", make_labelled(tmp_path, count=10, folders=("train",)))
    assert (len(train), len(test)) == (18, 2) and test.labels is not None
    assert set(train.names) & set(test.names) == set()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda root: (root / "val" / "cat" / "0.png").write_text("x"),
            "1 unreadable files in .*val",
        ),
        (
            lambda root: [f.write_text("x") for f in (root / "train" / "cat").iterdir()],
            "unreadable",
        ),
        (lambda root: [f.write_text("x") for f in root.rglob("*.png")], "unreadable"),
        (lambda root: [f.unlink() for f in (root / "train").rglob("*.png")], "no images"),
        (
            lambda root: [
                f.unlink() for f in root.rglob("*.png") if f.name != "0.png" or "dog" in str(f)
            ],
            "1 images to train",
        ),
    ],
)
def test_doctor_fails_where_training_would(tmp_path, capsys, spoil, message):
    root = make_labelled(tmp_path)
    spoil(root)
    with pytest.raises(InputError, match=message):
        data.load("folder", root)
    with pytest.raises(SystemExit) as exit_:
        data.main(data.parse_args(["--dataset", "folder", "--data", str(root)]))
    out = capsys.readouterr().out
    assert exit_.value.code == 1 and "training would fail" in out
    broken = [str(f) for f in root.rglob("*.png") if f.read_bytes() == b"x"]
    assert all(f"unreadable: {path}" in out for path in broken)  # each, before the verdict


def test_a_stray_file_is_named(tmp_path):
    root = make_labelled(tmp_path)
    photo(20, 20).save(root / "train" / "stray.png")
    train, _ = data.load("folder", root)
    assert train.labels is None and "stray.png" in train.why_no_labels


def test_file_names_that_are_not_text(tmp_path, capsys):
    root = make_labelled(tmp_path)
    odd = os.fsdecode(os.fsencode(root / "train" / "cat") + b"/caf\xe9.png")
    (root / "train" / "cat" / "0.png").rename(odd)
    train, test = data.load("folder", root)
    assert train.names[3] == b"cat/caf\xe9.png"
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(b"\n".join(part.names.tolist()) + b"\n\n")
    assert data.split_hash(train, test) == digest.hexdigest()[:12]


def test_shares_of_each_class():
    labels = torch.tensor([0] * 100 + [2] * 20 + [1] * 10)
    dataset = data.ImageSet(torch.zeros(130, 1, 1, 3), labels)
    w, alphas = data.split(dataset, 0, (0.5, 0.25), by_class=True)
    assert dataset.labels[w].bincount().tolist() == [50, 5, 10]
    assert dataset.labels[alphas].bincount().tolist() == [25, 3, 5]
    assert not set(w.tolist()) & set(alphas.tolist()) and w.tolist() == sorted(w.tolist())
    assert w.tolist() != data.split(dataset, 1, (0.5, 0.25), by_class=True)[0].tolist()
    dataset.labels = None  # a task without labels does not read them
    parts = data.split(dataset, 0, (0.1, 0.025), by_class=False)
    assert [len(part) for part in parts] == [13, 3]
    with pytest.raises(InputError, match="--images 0.5 0.001: .* leaves none for weights or alpha"):
        data.split(dataset, 0, (0.5, 0.001), by_class=False)


def test_limit_split_and_hash(odd_files):
    train, test = data.load("folder", odd_files, limit=10)
    names = train.names.tolist()
    assert len(names) == 10 and names == sorted(names)
    assert data.load("folder", odd_files, limit=10)[0].names.tolist() == names
    a, b = data.split_in_half(11, seed=3)
    assert len(a) == len(b) == 5 and not set(a.tolist()) & set(b.tolist())
    assert not torch.equal(data.split_in_half(11, seed=4)[0], a)
    hashes = {
        data.split_hash(train, a, b),
        data.split_hash(train, b, a),
        data.split_hash(test, a, b),
    }
    assert len(hashes) == 3 and data.split_hash(train, a, b) in hashes


def test_batches():
    images = data.ImageSet(
        torch.arange(10).view(10, 1, 1, 1).expand(10, 4, 4, 3).to(torch.uint8), torch.arange(10)
    )
    seen = [
        index.tolist() for _, _, index in data.batches(images, View("labels", "area", 4), 4, "cpu")
    ]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    part = torch.tensor([1, 3, 5, 7, 9])
    for x, labels, index in data.batches(images, View("labels", "area", 4), 2, "cpu", part, seed=0):
        assert (
            x.shape == (2, 3, 4, 4) and x[:, 0, 0, 0].tolist() == labels.tolist() == index.tolist()
        )
        assert set(index.tolist()) <= set(part.tolist())
    orders = {
        tuple(
            i.item()
            for _, _, index in data.batches(images, View(None, "area", 4), 5, "cpu", seed=(0, k))
            for i in index
        )
        for k in range(5)
    }
    assert len(orders) > 1 and all(sorted(order) == list(range(10)) for order in orders)


def test_shapes():
    train, test = data.load("shapes")
    assert (len(train), len(test)) == (2000, 500) and train.classes == shapes.SHAPES
    assert train.labels.bincount().tolist() == [200] * 10
    assert torch.equal(data.load("shapes")[0].images, train.images)
    assert not torch.equal(train.images[:500], test.images)
    objects = torch.stack([(train.masks == 2 + c).flatten(1).any(1) for c in range(10)], 1)
    assert (
        objects == torch.eye(10, dtype=torch.bool)[train.labels]
    ).float().mean() > 0.99  # each its own class alone
    assert train.masks.flatten(1).float().std(1).min() > 0
    assert train.mask_classes == ["sky", "ground", *shapes.SHAPES]
    small = data.load("shapes", size=8)[0]
    assert (
        torch.equal(small.masks, train.masks[:, 2::4, 2::4])
        and small.mask_classes == train.mask_classes
    )
    # light from above: over all images the upper half is the brighter one
    brightness = train.images.float().mean((0, 2, 3))
    assert brightness[:16].mean() > brightness[16:].mean() + 10


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with a small archive in CIFAR-10's format."""
    root = tmp_path / "complete" / CIFAR10.base_folder
    root.mkdir(parents=True)

    def put(name, content):
        (root / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((root / name).read_bytes()).hexdigest()]

    pixels = np.random.RandomState(0).randint(0, 256, (6, 3072)).astype(np.uint8)
    train = {"data": pixels, "labels": [0, 1, 2, 3, 4, 5]}
    train_list = [put(f"data_batch_{i}", train) for i in range(1, 6)]
    test_list = [put("test_batch", {"data": pixels, "labels": [9] * 6})]
    name, md5 = put("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", test_list)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return root.parent


def test_cifar10_through_torchvision(cifar10):
    train, test = data.load("cifar10", cifar10, limit=20)
    assert train.images.shape == (20, 32, 32, 3) and test.labels.tolist() == [9] * 6
    with open(cifar10 / CIFAR10.base_folder / "test_batch", "rb") as file:
        pixels = pickle.load(file)["data"]
    assert test.images[0].permute(2, 0, 1).flatten().tolist() == pixels[0].tolist()
    assert train.classes == [str(i) for i in range(10)]
    assert not list(cifar10.glob("*.lock"))  # nothing was fetched


def test_one_process_downloads_cifar10(cifar10, tmp_path, monkeypatch, capfd):
    def download(url, root, filename, md5):
        with open(tmp_path / "downloads", "a") as log:
            log.write("x")
        time.sleep(0.5)
        shutil.copytree(cifar10 / CIFAR10.base_folder, Path(root) / CIFAR10.base_folder)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)

    def rank():
        train, test = data.load("cifar10", tmp_path / "data" / "new")
        assert (len(train), len(test)) == (30, 6)

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank) for _ in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * 3
    assert (tmp_path / "downloads").read_text() == "x"
    assert f"CIFAR-10 is not in {tmp_path / 'data' / 'new'}: downloading" in capfd.readouterr().out


@pytest.mark.parametrize("error", [URLError("no network"), RuntimeError("File not found")])
def test_cifar10_that_cannot_be_downloaded(tmp_path, monkeypatch, error):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    message = f"{str(error).strip('<>')}.*cifar-10-python.tar.gz into {tmp_path}"
    with pytest.raises(InputError, match=message):
        data.load("cifar10", tmp_path)


def test_real_images(shared_data, tmp_path):
    with tarfile.open(shared_data / "cifar10.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(("0001.jpg", "0002.jpg", "0003.jpg")):
                target = tmp_path / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
    train, test = data.load("folder", tmp_path / "cifar10")
    assert train.classes == test.classes and len(train.classes) == 10 and len(train) == 30
    assert train.images.float().std() > 30


# --------------------------------------------------------------------------------------------------
# Data sets on disk


def view(targets=None, crop="area", size=32):
    return View(targets, crop, size)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_imagenet_in_batches(imagenet):
    train, test = data.load("imagenet", imagenet)
    assert (len(train), len(test)) == (28, 5) and train.classes == test.classes == ["n01", "n02"]
    assert train.labels.tolist() == [0] * 8 + [1] * 20 and test.labels.tolist() == [0, 0, 0, 1, 1]
    assert (
        train.names[1] == b"n01/cmyk.JPEG"
        and train.notes == ["left out: 1 .txt, 1 empty folders"]
        and train.jitter == 0.1
        and not train.padded_crops
    )
    state = torch.get_rng_state()
    for part, uses, crop, seed in [
        (train, "labels", "area", (3, 1)),
        (train, None, "window", 3),
        (train, None, "area", None),
        (test, "labels", "window", None),
    ]:
        found = []
        for workers in (0, 2):
            part.workers = workers
            found.append(list(data.batches(part, view(uses, crop, 33), 5, "cpu", seed=seed)))
        assert sum(len(index) for _, _, index in found[0]) == (len(part) if seed is None else 25)
        for (x, labels, index), (again, *_, same) in zip(*found, strict=True):
            assert (
                x.shape == (len(index), 3, 33, 33)
                and x.dtype == torch.uint8
                and x.is_contiguous(memory_format=torch.channels_last)
            )
            assert torch.equal(x, again) and torch.equal(index, same)
            assert (
                labels is None if uses is None else torch.equal(labels, part.labels[index].long())
            )
    assert torch.equal(torch.get_rng_state(), state)  # nor did workers change it

    def drawn(seed):
        return {
            i.item(): x
            for images, _, index in data.batches(train, view(), 5, "cpu", seed=seed)
            for x, i in zip(images, index)
        }

    one, same, other = drawn((0, 1)), drawn((0, 1)), drawn((0, 2))
    assert all(torch.equal(one[i], same[i]) for i in one)
    assert not all(torch.equal(one[i], other[i]) for i in one.keys() & other.keys())


def test_workers_that_start_anew(streets, monkeypatch):
    """As on Windows and macOS, where all that a worker gets is pickled; SIGTERM is not for them."""
    train, _ = data.load("cityscapes", streets)
    alone = list(data.batches(train, view("masks"), 4, "cpu", seed=(0, 1)))
    spawning = partial(DataLoader, multiprocessing_context="spawn")
    monkeypatch.setattr(image_files, "DataLoader", spawning)
    train.workers = 2
    found = []
    for batch in data.batches(train, view("masks"), 4, "cpu", seed=(0, 1)):
        found.append(batch)
        if len(found) == 2:  # both have started
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)
                worker.join(0.5)
                assert worker.exitcode is None
    assert len(found) == 3
    for batch, again in zip(alone, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, again))


def test_ranks_share_each_batch_of_files(imagenet, monkeypatch):
    train, _ = data.load("imagenet", imagenet)
    alone = list(data.batches(train, view("labels"), 6, "cpu", seed=5))
    monkeypatch.setattr(data.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(data.dist, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(data.dist, "get_rank", lambda: rank)
        shares.append(list(data.batches(train, view("labels"), 6, "cpu", seed=5)))
    for whole, *parts in zip(alone, *shares, strict=True):
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*parts)))


def test_number_of_workers(imagenet, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [part.workers for part in data.load("imagenet", imagenet, workers=None)] == [3, 3]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert data.load("imagenet22k", imagenet / "train", workers=None)[0].workers == 8
    assert data.load("imagenet22k", imagenet / "train")[0].workers == 0


def test_unreadable_files_on_disk(imagenet, capsys):
    for k in range(3):
        cut(imagenet / f"train/n02/{k:02}.JPEG")
    cut(imagenet / "val/n01/2.JPEG")
    train, test = data.load("imagenet", imagenet)
    bad = {
        i
        for i, name in enumerate(train.names)
        if name in (b"n02/00.JPEG", b"n02/01.JPEG", b"n02/02.JPEG")
    }
    for epoch in (1, 2):
        for x, labels, index in data.batches(train, view("labels"), 13, "cpu", seed=(0, epoch)):
            assert (
                len(x) == 13
                and not bad & set(index.tolist())
                and torch.equal(labels, train.labels[index].long())
            )
    names = sorted(os.path.basename(path) for path in train.unreadable)
    assert names == ["00.JPEG", "01.JPEG", "02.JPEG"]
    assert len(train.unreadable) == 3 and capsys.readouterr().out.count("left out, unreadable") == 3
    for part, workers in ((test, 0), (test, 2)):
        part.workers = workers
        with pytest.raises(InputError, match=r"^\S*val/n01/2.JPEG: unreadable"):
            list(data.batches(part, view(), 2, "cpu"))
    with pytest.raises(InputError, match="1 of 1 images of its batch"):
        list(data.batches(train, view(), 1, "cpu", torch.tensor([min(bad)]), seed=0))
    with pytest.raises(SystemExit):
        data.main(data.parse_args(["--dataset", "imagenet", "--data", str(imagenet)]))
    out = capsys.readouterr().out
    assert (
        "n01: 8" in out
        and "1 empty folders" in out
        and out.count("unreadable: ") == 4
        and "would fail" in out
    )
    assert "decoded 25, " in out and "decoded 4, " in out
    for k in range(3, 12):
        cut(imagenet / f"train/n02/{k:02}.JPEG")
    with pytest.raises(InputError, match="12 of 28 images below .*train are unreadable"):
        list(data.batches(train, view(), 28, "cpu", seed=0))


def test_passes_over_the_images_have_crops_of_their_own(imagenet):
    train, _ = data.load("imagenet", imagenet)
    source, index = (train, view(), 2, "cpu"), torch.tensor([0, 1, 2, 3, 5])

    def take(n, skip=0):
        passes = search.in_passes(source, index, (0, 1), skip)
        return [batch for batch, _ in zip(passes, range(n))]

    first = take(6)  # three passes of two batches
    once = [*data.batches(*source, index, (0, 1, 1))]
    assert all(torch.equal(a, b) for x, y in zip(first, once) for a, b in zip(x[::2], y[::2]))
    crops = {}
    for images, _, chosen in first:
        for image, i in zip(images, chosen.tolist()):
            crops.setdefault(i, set()).add(image.numpy().tobytes())
    assert sum(map(len, crops.values())) > len(index)
    for skip in range(6):
        for (x, _, i), (y, _, j) in zip(first[skip:], take(6 - skip, skip), strict=True):
            assert torch.equal(x, y) and torch.equal(i, j)


def test_a_search_on_imagenet22k_ends_where_an_image_is_unreadable(imagenet, tmp_path):
    for path in [*(imagenet / "train/n02").glob("*.JPEG")][::4]:
        cut(path)
    small = "--limit 24 --size 16 --stem cifar --width 4 --layers 2 --batch_size 4 --device cpu"
    argv = ["--task", "rot", "--epochs", "1", "--dataset", "imagenet22k", *small.split()]
    argv += ["--data", str(imagenet / "train"), "--alpha_start", "0", "--out", str(tmp_path / "s")]
    search.main(search.parse_args(argv))
    meta = genotypes.read_search(tmp_path / "s" / "genotype.json")["meta"]
    assert 0 < meta["evaluation"]["top1"] <= 100


def test_imagenet22k(imagenet):
    train, test = data.load("imagenet22k", imagenet / "train", limit=10)
    assert test is None and len(train) == len(train.labels) == 10
    assert [train.classes[c] for c in train.labels] == [
        os.fsdecode(name)[:3] for name in train.names
    ]
    assert data.split_hash(train, test) != data.split_hash(
        data.load("imagenet22k", imagenet / "train", limit=9)[0], None
    )
    assert len(list(data.examine("training", train))) > 5


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "val").rename(root / "images"), "no folders train/ and val/"),
        (
            lambda root: [f.unlink() for f in (root / "train").rglob("*.*")],
            r"train: no images \(.bmp, .*\), but 3 empty folders",
        ),
        (
            lambda root: [f.rename(f.with_suffix(".xyz")) for f in (root / "val").rglob("*.*")],
            r"val: no images \(.bmp, .*\), but .*5 .xyz",
        ),
    ],
)
def test_imagenet_layout(imagenet, spoil, message):
    spoil(imagenet)
    with pytest.raises(InputError, match=message):
        data.load("imagenet", imagenet)


def flatten(folder):
    for path in list(folder.glob("*/*")):
        path.rename(folder / path.name)
    for subfolder in folder.glob("*/"):
        subfolder.rmdir()


@pytest.mark.parametrize("name", ["imagenet", "folder"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda val: (val / "n02").rename(val / "n05"), "training part does not have: n05"),
        (flatten, "folder (for each|of a) class"),
        (lambda val: val.rename(val.parent / "VALID"), None),
    ],
)
def test_evaluation_images_of_other_layouts(imagenet, name, change, reason):
    """Tasks without labels need no folders of classes."""
    change(imagenet / "val")
    train_set, test_set = data.load(name, imagenet, size=32)
    assert len(train_set) == 28 and len(test_set) == 5
    pretext.make_task("rot", train_set, 32, "cifar", 2, "cpu")
    if reason is None:
        assert train_set.labels is not None and test_set.labels is not None
        return
    with pytest.raises(InputError, match=f"task cls needs labels: .*val.*{reason}"):
        pretext.make_task("cls", train_set, 32, "cifar", 2, "cpu")


def test_parts_that_are_not_trained_on(tmp_path):
    root = make_labelled(tmp_path, count=3, folders=("Train", "Test", "validation"))
    train_set, test_set = data.load("folder", root)
    assert len(train_set) == 6 and train_set.labels is not None
    assert len(test_set) == 6 and "6 outside the folders that are used" in said(train_set)


@pytest.mark.parametrize("name", ["folder", "imagenet22k"])
def test_one_scale_for_all_images_of_sixteen_bits(tmp_path, capsys, name):
    """12 bits in files of 16, of which some are dark; floating point from 0 to 1."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for k, top in enumerate((4000, 90, 2000, 4000)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / "a" / f"{k}.png")
        Image.fromarray(np.full((8, 8), top / 4000, np.float32)).save(tmp_path / "b" / f"{k}.tif")
    bad = np.full((8, 8), 0.5, np.float32)
    bad[0, 0] = np.nan
    Image.fromarray(bad).save(tmp_path / "a" / "nan.tif")
    train_set, test_set = data.load(name, tmp_path, size=8)
    assert "mode I: 4095 is white, by the largest value in 8 images" in train_set.notes
    assert "mode F: 1 is white, by the largest value in 8 images" in train_set.notes
    values = {}
    for part in filter(None, (train_set, test_set)):
        batch_size = 3 if name == "imagenet22k" else 1
        for images, _, index in data.batches(
            part, View(None, "window", 8), batch_size, "cpu", seed=0
        ):
            for i, image in zip(index.tolist(), images):
                values[os.fsdecode(part.names[i])] = image.unique().tolist()
    if name == "folder":
        assert [Path(path).name for path in train_set.unreadable] == ["nan.tif"]
    values.pop("a/nan.tif", None)
    wanted = [round(value * 255 / 4095) for value in (4000, 90, 2000, 4000)]
    assert [values[f"a/{k}.png"] for k in range(4)] == [[value] for value in wanted]
    assert [values[f"b/{k}.tif"] for k in range(4)] == [[255], [6], [128], [255]]
    data.main(data.parse_args(["--dataset", name, "--data", str(tmp_path), "--size", "8"]))
    out = capsys.readouterr().out
    assert "mode I: 4095 is white" in out and "some values are not finite numbers" in out


# --------------------------------------------------------------------------------------------------
# Tar archives


def pack(folder, members="", **options):
    """Makes <folder>.tar of what is in a folder, in place of it."""
    with tarfile.open(f"{folder}.tar", "w", **options) as tar:
        tar.add(folder, members)
    shutil.rmtree(folder)


def pack_archives(folder):
    """As ImageNet's training images are: an archive of an archive for each class."""
    for path in folder.iterdir():
        pack(path)
    pack(folder)


def pack_beside(folder):
    """Half of each class in an archive beside its folder."""
    for path in list(folder.iterdir()):
        if files := sorted(filter(Path.is_file, path.iterdir()))[::2]:
            with tarfile.open(f"{path}.tar", "w") as tar:
                for file in files:
                    tar.add(file, file.name)
                    file.unlink()


PACKINGS = {
    "classes": lambda folder: [pack(path) for path in folder.iterdir()],
    "whole": lambda folder: pack(folder, folder.name),
    "dot": partial(pack, members="."),
    "archives": pack_archives,
    "beside": pack_beside,
    "pax": partial(pack, format=tarfile.PAX_FORMAT, pax_headers={"comment": "an image"}),
    "ustar": partial(pack, format=tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("how", PACKINGS)
def test_tar_archives_are_folders(imagenet, tmp_path, monkeypatch, how):
    """The same names, labels, split and batches, on disk and in memory."""
    packed = tmp_path / "packed"
    deep = "a folder with a name that no header of a tar archive has room for" * 3
    (imagenet / "train" / "n02" / deep).mkdir()
    photo(60, 50).save(imagenet / "train" / "n02" / deep / f"{'é' * 40}.png")
    if how == "ustar":  # has no long names
        shutil.rmtree(imagenet / "train" / "n02" / deep)
    shutil.copytree(imagenet, packed)
    for part in ("train", "val"):
        PACKINGS[how](packed / part)
    assert len(list(packed.rglob("*.tar"))) == {"classes": 5, "beside": 4}.get(how, 2)
    for name, options in (("imagenet", {}), ("folder", {"size": 32}), ("folder", {"limit": 20})):
        if options == {"limit": 20}:
            monkeypatch.setattr(data, "MAX_BYTES", 100)  # on disk
        folders, tars = (data.load(name, root, **options) for root in (imagenet, packed))
        assert data.split_hash(*folders) == data.split_hash(*tars)
        assert "duplicate" not in said(tars[0])
        for there, here in zip(folders, tars):
            assert there.names.tolist() == here.names.tolist() and there.classes == here.classes
            assert there.size == here.size and torch.equal(there.labels, here.labels)
            here.workers = 2 * (name == "imagenet")
            for seed in (None, (0, 1)):
                batches = [
                    list(data.batches(part, view("labels"), 5, "cpu", seed=seed))
                    for part in (there, here)
                ]
                for a, b in zip(*batches, strict=True):
                    assert all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.slow
def test_a_search_from_disk_is_the_same(imagenet, tmp_path, monkeypatch):
    """Whatever the number of workers, and from folders as from tar archives."""
    monkeypatch.setattr(data, "MAX_BYTES", 0)
    found = []
    for workers in (0, 3, 1):
        argv = ["--dataset", "folder", "--data", imagenet, "--task", "rot", "--size", 16]
        argv += ["--batch_size", 4, "--workers", workers, "--print_every", 1, "--alpha_start", 0]
        run(search, *argv, "--out", tmp_path / f"s{workers}")
        text = (tmp_path / f"s{workers}" / "log.jsonl").read_text()
        head, *lines = map(json.loads, text.splitlines())
        keys = "loss", "w_loss", "alpha_loss", "genotype"
        found.append([head["split"], *({key: line.get(key) for key in keys} for line in lines)])
        if workers == 3:
            PACKINGS["classes"](imagenet / "train")
    assert found[0] == found[1] == found[2]
    assert len(found[0]) >= 5 and found[0][-1]["genotype"] and found[0][-1]["alpha_loss"]


def add(tar, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def png(seed):
    file = io.BytesIO()
    photo(20, 20, seed).save(file, "png")
    return file.getvalue()


def test_a_class_of_the_name_of_its_archive(tmp_path):
    """Other than a folder around all names, as `tar -cf train.tar train/` puts it."""
    for first, around in (("bus/._0.png", ""), ("._train", "train/")):  # hidden, as from a Mac
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            add(tar, first)
            for name in ("bus", "train"):
                add(tar, f"{around}{name}/0.png", png(0))
                add(tar, f"{around}{name}/1.png", png(1))
        train_set, _ = data.load("folder", tmp_path, size=8)
        assert train_set.classes == ["bus", "train"] and train_set.labels is not None


def test_what_a_tar_archive_leaves_out(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "folder.png").write_bytes(png(0))
    with tarfile.open(tmp_path / "a" / "shard.tar", "w") as tar:
        for k in range(8):
            add(tar, f"./x//{k}.png", png(k))
        add(tar, "x/3.png", png(30))  # the last one counts, as for who unpacks it
        add(tar, "x/bad.png", png(9)[:60])
        add(tar, "x/link.png", type=tarfile.SYMTYPE, linkname="0.png")
        add(tar, "x/same.png", type=tarfile.LNKTYPE, linkname="x/0.png")
        add(tar, "x/pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "empty.png/", type=tarfile.DIRTYPE)
        add(tar, ".hidden/0.png", png(0))
        add(tar, "x/._0.png", png(0))
        add(tar, "../up.png", png(0))
        add(tar, "/etc/absolute.png", png(1))
        add(tar, "caf\udce9.png", png(1))
        add(tar, "notes.txt", b"no image")
        add(tar, "inner.tar.gz", b"no image")
    (tmp_path / "a" / "more.zip").write_bytes(b"")
    (tmp_path / "a" / "._shard.tar").write_bytes(b"from a Mac")
    (tmp_path / "a" / "gone.tar").symlink_to("nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "a" / "pipe.tar")  # would block
    no_files = 1 + hasattr(os, "mkfifo")
    train_set, _ = data.load("imagenet22k", tmp_path)
    assert train_set.notes[0] == (
        f"left out: 4 hidden, 3 links and the like in archives, {no_files} .tar, "
        "1 .gz (unpack it, or decompress it to .tar), 1 .txt, "
        "1 .zip (unpack it, or decompress it to .tar), 1 duplicate names"
    )
    names = [
        b"etc/absolute.png",
        b"caf\xe9.png",
        *(b"x/%d.png" % k for k in range(8)),
        b"x/bad.png",
    ]
    assert train_set.names.tolist() == sorted([b"a/folder.png", *(b"a/shard/" + n for n in names)])
    images, _, _ = next(data.batches(train_set, view(), 1, "cpu", torch.tensor([6])))
    assert train_set.names[6] == b"a/shard/x/3.png"
    assert images[0, 2].unique().tolist() == [30 * 37 % 256]
    train_set.examine(torch.arange(len(train_set)))
    (path,) = train_set.unreadable
    assert str(path) == f"{tmp_path}/a/shard.tar: a/shard/x/bad.png"
    data.main(data.parse_args(["--dataset", "imagenet22k", "--data", str(tmp_path)]))
    assert f"unreadable: {path} (" in capsys.readouterr().out


def test_tar_archives_that_are_not_whole(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "b.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for k in range(4):
            add(tar, f"{k}{'é' * 60}.png", png(k))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))  # in the data of the last member
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    cuts = [
        0,
        100,
        512,
        700,
        starts[2],
        starts[2] + 512,
        starts[3] + 1200,
        end,
        -(-end // 512) * 512,
    ]
    broken = [whole[:cut] for cut in cuts] + [gzip.compress(whole), b"x" * 2000, b"\1" + whole]
    broken.append(whole[: starts[2]] + b"x" * 512 + whole[starts[2] + 512 :])
    broken.append(whole + whole)  # of which only the first would be read
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^{path}: not a whole .tar, or compressed"):
            data.load("imagenet22k", tmp_path)
    path.write_bytes(whole)
    train_set, _ = data.load("imagenet22k", tmp_path)
    path.write_bytes(whole[: starts[2]])  # while it is in use: as any unreadable file
    for workers in (0, 1):
        train_set.workers, train_set.unreadable = workers, {}
        (batch,) = data.batches(train_set, view(), 4, "cpu", seed=0)
        assert set(batch[2].tolist()) == {0, 1} and len(train_set.unreadable) == 2
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: .* No such file"):
        list(data.batches(train_set, view(), 4, "cpu", seed=0))


@pytest.mark.skipif(os.name == "nt", reason="sparse files")
def test_an_offset_of_ten_gigabytes(tmp_path):
    huge = tarfile.TarInfo("huge.bin")
    huge.size = 10 * 2**30
    for name, kind in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        with open(tmp_path / f"{name}.tar", "wb") as file:
            file.write(huge.tobuf(kind))
            file.seek(huge.size, os.SEEK_CUR)
            with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
                add(tar, "0.png", png(5))
    train_set, _ = data.load("imagenet22k", tmp_path)
    assert train_set.names.tolist() == [b"gnu/0.png", b"pax/0.png"]
    for images, _, _ in data.batches(train_set, view(), 1, "cpu"):
        assert images[0, 2].unique().tolist() == [5 * 37]


def test_what_takes_long_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    root = make_labelled(tmp_path / "photos", folders=("train",))
    pack(root / "train" / "cat")
    clock = SimpleNamespace(time=time.time, monotonic=itertools.count(step=4).__next__)
    monkeypatch.setattr(cli, "time", clock)
    data.load("folder", root)
    out = capsys.readouterr().out
    assert f"{root}: folders listed: 2\n" in out and f"{root}/train/dog: files listed: 2\n" in out
    assert f"{root}/train/cat.tar: files listed: 2\n" in out
    assert f"{root}/train: images in memory, of 7: 2\n" in out
    monkeypatch.setenv("RANK", "1")
    data.load("folder", root)
    assert capsys.readouterr().out == ""


def private_memory():
    """Bytes that this process has written and shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))


@pytest.mark.slow
def test_the_list_of_many_files_is_shared_with_workers(tmp_path):
    n = 50_000
    for c in range(50):
        (tmp_path / f"n{c:08}").mkdir()
        for k in range(n // 50):
            os.close(os.open(tmp_path / f"n{c:08}" / f"n{c:08}_{k}.JPEG", os.O_CREAT | os.O_WRONLY))
    train, _ = data.load("imagenet22k", tmp_path)
    assert len(train) == n and train.names.nbytes < 30 * n

    def touch(names, queue):
        before = private_memory()
        assert all(names[i].endswith(b".JPEG") for i in range(n))
        queue.put(private_memory() - before)

    def growth(names):
        """Of a worker that reads all names, as its parent did."""
        assert all(names[i] for i in range(n))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=touch, args=(names, queue))
        worker.start()
        grown = queue.get(timeout=60)
        worker.join()
        return grown

    assert growth(train.names) < 0.2 * growth(
        list(train.names)
    )  # whose strings count their references


def test_random_area():
    rng = np.random.default_rng(0)
    for W, H in ((500, 375), (60, 61)):
        boxes = np.array([image_files.random_area(W, H, 32, rng)[0] for _ in range(2000)])
        left, top, right, bottom = boxes.T
        assert (
            left.min() >= 0
            and top.min() >= 0
            and right.max() <= W + 1e-9
            and bottom.max() <= H + 1e-9
        )
        area, aspect = (right - left) * (bottom - top) / (W * H), (right - left) / (bottom - top)
        assert 0.08 <= area.min() < 0.1 and 0.9 < area.max() <= 1
        assert 3 / 4 - 1e-9 <= aspect.min() < 0.76 and 1.32 < aspect.max() <= 4 / 3 + 1e-9
        assert abs((left / (W - (right - left))).mean() - 0.5) < 0.03
    assert image_files.random_area(1, 500, 32, rng)[0] == pytest.approx(
        (0, 250 - 2 / 3, 1, 250 + 2 / 3)
    )
    assert image_files.random_area(500, 1, 32, rng)[0] == pytest.approx(
        (250 - 2 / 3, 0, 250 + 2 / 3, 1)
    )


def test_windows():
    rng = np.random.default_rng(0)
    tiles = view(crop="window", size=255)
    # scaled to 256 x 260: 2 x 6 offsets
    boxes = {image_files.photo_crop(512, 520, tiles, rng)[0] for _ in range(300)}
    assert boxes == {(2 * x, 2 * y, 2 * x + 510, 2 * y + 510) for x in range(2) for y in range(6)}
    assert image_files.photo_crop(512, 512, tiles, None) == ((0, 0, 510, 510), (255, 255))
    assert image_files.photo_crop(512, 1024, view(size=224), None) == (
        (32, 288, 480, 736),
        (224, 224),
    )  # of 256 x 512
    assert image_files.scene_crop(200, 100, view("masks", size=50), None) == (
        (0, 0, 200, 100),
        (200, 100),
    )


def test_scales_of_street_scenes():
    """On Cityscapes, 2048 x 1024: the shorter side is 512 * 2^u in searches (crops of 321) and
    1024 * 2^u in the evaluation phase (769), but never below the crop."""
    rng = np.random.default_rng(0)
    for base, size, smallest in ((0.5, 321, 321), (1.0, 769, 769), (1.0, 400, 512)):
        at = image_files.View("masks", "area", size, base)
        boxes = np.array([image_files.scene_crop(2048, 1024, at, rng)[0] for _ in range(4000)])
        assert boxes.min() == 0 and boxes[:, 2].max() <= 2048 and boxes[:, 3].max() <= 1024
        assert boxes[:, 2].max() > 2040 and boxes[:, 3].max() > 1020
        shorter = 1024 * size / (boxes[:, 3] - boxes[:, 1])
        assert shorter.min() == pytest.approx(smallest, rel=2e-3)
        assert shorter.max() == pytest.approx(2048 * base, rel=5e-3)
        u = np.log2(shorter[shorter > smallest + 2] / (1024 * base))  # uniform where it is free
        assert stats.kstest(u, "uniform", (u.min(), np.ptp(u))).pvalue > 1e-3
    at = image_files.View(None, "area", 321, 0.5)  # evaluated without masks: the middle at 512
    assert image_files.scene_crop(2048, 1024, at, None) == ((702, 190, 1344, 832), (321, 321))
    small = image_files.View(None, "area", 160, 0.5)  # of photos whose half is below the crop
    box, _ = image_files.scene_crop(320, 240, small, None)
    assert box == pytest.approx((39, 0, 279, 240), abs=1)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(tmp_path, ending, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    photo(400, 240).save(tmp_path / f"turned.{ending}", exif=exif)
    with Image.open(tmp_path / f"turned.{ending}") as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    H, W, _ = upright.shape
    assert (W, H) == ((400, 240) if turn < 5 else (240, 400))
    for box, size in (
        ((40, 24, 200, 124), (160, 100)),
        ((8, 16, 232, 240), (28, 28)),
    ):  # the second one decoded at 1/8
        pixels, full, _ = image_files.read_rgb(
            tmp_path / f"turned.{ending}", lambda W, H: (box, size), {}
        )
        part = Image.fromarray(upright.astype(np.uint8)).resize(
            size, Image.Resampling.BILINEAR, box
        )
        assert full == (W, H) and pixels.shape == (size[1], size[0], 3)
        assert abs(pixels - np.asarray(part).astype(int)).mean() < 2


def test_fast_decoding_gives_the_same_pixels(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (20, 26, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    smooth.save(tmp_path / "photo.jpg", quality=95)

    def small(W, H):
        return image_files.middle(W, H, 480, 480, 50)

    def large(W, H):
        return image_files.middle(W, H, 480, 480, 224)

    for crop in (small, large, lambda W, H: ((30.5, 7.25, 330.5, 307.25), (96, 96))):
        fast = image_files.read_rgb(tmp_path / "photo.jpg", crop, {})[0]
        with monkeypatch.context() as patch:
            patch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *args: None)
            full = image_files.read_rgb(tmp_path / "photo.jpg", crop, {})[0]
        assert abs(fast.astype(int) - full.astype(int)).mean() < 2


COLORS = np.array(
    [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)], np.uint8
)
RAW = np.array([7, 8, 26, 3, 11, 33], np.uint8)  # an id for each colour
WANTED = torch.tensor([0, 1, 13, 255, 2, 18])


@pytest.fixture
def streets(tmp_path):
    """Cityscapes' layout, a colour for each class; images of one city have raw ids, those of the
    other train ids."""
    rng = np.random.default_rng(0)
    root = tmp_path / "streets"
    for part, count in (("train", 6), ("val", 2)):
        for city, kind in (("aachen", "labelIds"), ("bonn", "labelTrainIds")):
            for folder in ("leftImg8bit", "gtFine"):
                (root / folder / part / city).mkdir(parents=True)
            for k in range(count):
                H, W = (96, 160) if k % 2 else (40, 60)
                regions = (
                    rng.integers(0, len(RAW), (2, 3)).repeat(H // 2, 0).repeat(W // 3 + 1, 1)[:, :W]
                )
                stem = f"{part}/{city}/{city}_{k}"
                Image.fromarray(COLORS[regions]).save(
                    root / "leftImg8bit" / f"{stem}_leftImg8bit.png"
                )
                ids = (
                    RAW[regions] if kind == "labelIds" else WANTED.numpy().astype(np.uint8)[regions]
                )
                Image.fromarray(ids).save(root / "gtFine" / f"{stem}_gtFine_{kind}.png")
    other = (
        root / "gtFine/train/bonn/bonn_0_gtFine_labelIds.png"
    )  # not looked at, as there are train ids
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(other)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_show_what_images_show(streets, workers):
    train, test = data.load("cityscapes", streets, workers=workers)
    assert (
        (len(train), len(test)) == (12, 4)
        and train.labels is None
        and "cityscapes" in train.why_no_labels
    )
    assert (
        len(train.mask_classes) == 19
        and train.mask_classes[13] == "car"
        and not train.padded_crops
        and train.jitter == 0.1
    )

    def agreement(images, masks):
        """Share of the pixels whose mask says what their colour says; at borders colours mix."""
        difference = images.permute(0, 2, 3, 1)[..., None, :].float() - torch.from_numpy(COLORS)
        nearest, color = difference.abs().sum(-1).min(-1)
        assert (nearest == 0).float().mean() > 0.6
        return (masks == WANTED[color])[nearest == 0].float().mean().item()

    for epoch in range(5):
        for images, masks, _ in data.batches(
            train, view("masks", size=39), 4, "cpu", seed=(0, epoch)
        ):
            assert images.shape == (4, 3, 39, 39) and masks.shape == (4, 39, 39)
            assert masks.dtype == torch.uint8 and agreement(images, masks) > 0.99
    sizes = []
    for images, masks, _ in data.batches(
        test, view("masks", size=65), 4, "cpu"
    ):  # whole, one at a time
        assert agreement(images, masks) == 1
        sizes.append((*images.shape, *masks.shape))
    assert sizes == [(1, 3, 40, 60, 1, 40, 60), (1, 3, 96, 160, 1, 96, 160)] * 2


def test_cityscapes_without_masks(streets, monkeypatch):
    monkeypatch.setattr(
        image_files,
        "read_mask",
        lambda *args: pytest.fail("read a mask that the task does not use"),
    )
    train, test = data.load("cityscapes", streets, limit=3)
    assert len(train.masks) == len(train) == 3
    assert next(data.batches(test, view(size=65), 4, "cpu"))[0].shape == (3, 3, 65, 65)
    (streets / "gtFine" / "val").rename(streets / "gtFine" / "gone")
    train, test = data.load("cityscapes", streets)
    assert train.masks is None and test.masks is None and "gtFine/val: " in train.why_no_masks
    assert next(data.batches(train, view(size=65), 4, "cpu", seed=0))[1] is None


def test_masks_that_do_not_fit(streets, capsys):
    train, _ = data.load("cityscapes", streets)
    path = streets / "gtFine/train/aachen/aachen_1_gtFine_labelIds.png"
    Image.fromarray(np.zeros((48, 80), np.uint8)).save(path)  # half the size
    for workers in (0, 1):
        train.workers = workers
        with pytest.raises(InputError, match=rf"^{path}: .*160 x 96$"):
            list(data.batches(train, view("masks"), 12, "cpu", seed=0))
    Image.fromarray(np.full((96, 160), 7, np.uint8)).save(path)
    Image.fromarray(np.full((96, 160), 26, np.uint8)).save(
        streets / "gtFine/train/bonn/bonn_1_gtFine_labelTrainIds.png"
    )
    with pytest.raises(
        InputError, match="bonn_1_gtFine_labelTrainIds.png: a mask of train ids has 0 to 18"
    ):
        list(data.batches(train, view("masks", size=300), 12, "cpu", seed=0))
    path.unlink()
    (streets / "leftImg8bit/train/bonn/bonn_2_leftImg8bit.png").unlink()
    data.main(data.parse_args(["--dataset", "cityscapes", "--data", str(streets)]))
    out = capsys.readouterr().out
    assert "1 images have no mask, first" in out and "aachen/aachen_1" in out
    assert "1 masks have no image, first" in out and "bonn/bonn_2" in out


def test_ids_of_cityscapes():
    wanted = {c.id: (c.train_id, c.name) for c in Cityscapes.classes if not c.ignore_in_eval}
    assert len(wanted) == 19 and image_files.TRAIN_ID[-1] == 255
    assert {
        i: (image_files.TRAIN_ID[i], name) for i, name in image_files.CITYSCAPES.items()
    } == wanted
    assert (image_files.TRAIN_ID != 255).nonzero()[0].tolist() == list(wanted)


# --------------------------------------------------------------------------------------------------
# whole runs on files

SMALL = [
    "--size",
    "72",
    "--stem",
    "cifar",
    "--width",
    "4",
    "--layers",
    "2",
    "--epochs",
    "1",
    "--device",
    "cpu",
]


def run(script, *argv):
    return script.main(script.parse_args([*SMALL, *map(str, argv)]))


@pytest.mark.parametrize("name", ["cls", "rot", "col", "jig"])
def test_every_task_on_imagenet_files(imagenet, tmp_path, name):
    for k in range(2):
        cut(imagenet / f"train/n02/{k:02}.JPEG")
    argv = [
        "--dataset",
        "imagenet",
        "--data",
        imagenet,
        "--task",
        name,
        "--size",
        40,
        "--batch_size",
        7,
        "--workers",
        0,
    ]
    run(search, *argv, "--alpha_start", 0, "--out", tmp_path / "s")
    result = run(
        train,
        *argv,
        "--arch",
        tmp_path / "s" / "genotype.json",
        "--auxiliary",
        0,
        "--out",
        tmp_path / "t",
    )
    assert 0 <= result["final"] <= 100 and result["unreadable"] == 2
    line = json.loads((tmp_path / "t" / "log.jsonl").read_text().splitlines()[-1])
    assert line["unreadable"] == 2
    cut(imagenet / "val/n01/2.JPEG")
    with pytest.raises(InputError, match="val/n01/2.JPEG: unreadable"):
        run(train, *argv, "--arch", "darts_v2", "--auxiliary", 0, "--out", tmp_path / "u")
    assert not (tmp_path / "u" / "result.json").exists()


def test_imagenet22k_evaluates_on_the_held_out_half(imagenet, tmp_path, capsys):
    argv = [
        "--dataset",
        "imagenet22k",
        "--data",
        imagenet / "train",
        "--task",
        "rot",
        "--size",
        40,
        "--batch_size",
        7,
    ]
    argv += ["--workers", 0]
    run(search, *argv, "--out", tmp_path / "s")
    run(train, *argv, "--arch", "darts_v2", "--out", tmp_path / "t")
    assert "14 images to train, 14 to evaluate" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["seg", "rot"])
def test_runs_on_street_scenes(streets, tmp_path, name):
    argv = [
        "--dataset",
        "cityscapes",
        "--data",
        streets,
        "--task",
        name,
        "--batch_size",
        3,
        "--workers",
        0,
    ]
    run(search, *argv, "--out", tmp_path / "s")
    result = run(train, *argv, "--arch", tmp_path / "s" / "genotype.json", "--out", tmp_path / "t")
    assert result["final"] >= 0
    if name == "seg":
        assert len(result["epochs"][-1]["iou"]) == 19
    visualize.main(visualize.parse_args([str(tmp_path / "t"), "--images", "2"]))
    assert Image.open(tmp_path / "t" / "predictions.png").width > 500


def test_masks_stay_aligned_through_a_training(streets, tmp_path, monkeypatch):
    """What the network gets in training still shows, at each pixel that counts, the colour of its
    class."""
    seen = []

    def watch(self, images, masks, index, train, prepare=pretext.Segmentation.prepare):
        x, y = prepare(self, images, masks, index, train)
        colors = ((x * self.std + self.mean) * 255).round().permute(0, 2, 3, 1)
        nearest = (
            torch.cdist(colors.flatten(0, 2), torch.from_numpy(COLORS).float())
            .argmin(1)
            .view(y.shape)
        )
        agrees = (WANTED[nearest] == y)[(y != 255)].float()
        seen.append(agrees.mean().item())
        return x, y

    monkeypatch.setattr(pretext.Segmentation, "prepare", watch)
    argv = [
        "--dataset",
        "cityscapes",
        "--data",
        streets,
        "--task",
        "seg",
        "--batch_size",
        4,
        "--workers",
        0,
    ]
    run(train, *argv, "--arch", "darts_v2", "--epochs", 2, "--out", tmp_path / "t")
    assert len(seen) >= 8 and min(seen) > 0.95  # all but some pixels at the borders between regions
