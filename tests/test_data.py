import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import data
import pretext
import shapes
from errors import InputError


def photo(width, height, seed=0):
    """Something smooth, so that JPEG keeps it: red grows to the right, green downwards."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    blue = np.full_like(x, (seed * 37 % 256) / 255)
    return Image.fromarray((np.stack([x, y, blue], -1) * 255).astype(np.uint8))


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
    Image.fromarray((np.mgrid[0:1:40j, 0:1:50j][1] * 65535).astype(np.uint16)).save(root / "sixteen.png")
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
    images = {name: part.images[i].numpy() for part in (train, test) for i, name in enumerate(part.names)}
    assert set(train.names) & set(test.names) == set() and "sub/deep.bmp" in images

    def gradient(name, axis):
        line = images[name].astype(int).mean(axis=1 - axis)  # (32, 3) along the axis
        return line[-1] - line[0]

    assert gradient("plain00.jpg", 1)[0] > 150 and gradient("plain00.jpg", 0)[1] > 200  # the central square of 60 x 48
    assert abs(gradient("grey.jpg", 0)).min() > 50
    assert gradient("cmyk.jpg", 1)[0] > 150 and gradient("alpha.png", 1)[0] > 200
    assert gradient("sixteen.png", 1).min() > 150 and gradient("float.tiff", 1).min() > 150  # not clipped to white
    # The file has red growing to the right; turned clockwise it grows downwards.
    assert gradient("turned.jpg", 0)[0] > 200 and abs(gradient("turned.jpg", 1)[0]) < 20


def test_unreadable_files_are_named(odd_files, capsys):
    content = (odd_files / "plain03.jpg").read_bytes()
    (odd_files / "cut.jpg").write_bytes(content[: len(content) // 2])
    (odd_files / "empty.png").write_bytes(b"")
    (odd_files / "text.jpg").write_text("no image")
    train, test = data.load("folder", odd_files)
    names = {path.rsplit("/", 1)[1] for part in (train, test) for path, _ in part.unreadable}
    assert names == {"cut.jpg", "empty.png", "text.jpg"} and len(train) + len(test) == 23
    assert not test.unreadable
    data.main(data.parse_args(["--dataset", "folder", "--data", str(odd_files)]))
    out = capsys.readouterr().out
    assert "cut.jpg" in out and "labels: none" in out and "RGB 60 x 48" in out


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
    assert train.classes == ["cat", "dog"] and train.labels.tolist() == test.labels.tolist() == [0] * 4 + [1] * 4
    data.main(data.parse_args(["--dataset", "folder", "--data", str(root)]))
    out = capsys.readouterr().out
    assert "  cat: 4" in out and "labels: 2 classes" in out


def test_labelled_folder_without_evaluation_part(tmp_path):
    train, test = data.load("folder", make_labelled(tmp_path, count=10, folders=("train",)))
    assert (len(train), len(test)) == (18, 2) and test.labels is not None
    assert set(train.names) & set(test.names) == set()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "val" / "cat" / "0.png").write_text("x"), "1 unreadable files in .*val"),
        (lambda root: [f.write_text("x") for f in (root / "train" / "cat").iterdir()], "unreadable"),
        (lambda root: [f.write_text("x") for f in root.rglob("*.png")], "unreadable"),
        (lambda root: (root / "val" / "dog").rename(root / "val" / "bird"), "does not have: bird"),
        (lambda root: [f.unlink() for f in (root / "train").rglob("*.png")], "no images"),
        (
            lambda root: [f.unlink() for f in root.rglob("*.png") if f.name != "0.png" or "dog" in str(f)],
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
    (root / "train" / "cat" / "0.png").rename(os.fsdecode(os.fsencode(root / "train" / "cat") + b"/caf\xe9.png"))
    train, test = data.load("folder", root)
    assert len(data.split_hash(train, test)) == 12


def test_limit_split_and_hash(odd_files):
    train, test = data.load("folder", odd_files, limit=10)
    assert len(train) == 10 and train.names == sorted(train.names)
    assert data.load("folder", odd_files, limit=10)[0].names == train.names
    a, b = data.halves(11, seed=3)
    assert len(a) == len(b) == 5 and not set(a.tolist()) & set(b.tolist())
    assert not torch.equal(data.halves(11, seed=4)[0], a)
    hashes = {data.split_hash(train, a, b), data.split_hash(train, b, a), data.split_hash(test, a, b)}
    assert len(hashes) == 3 and data.split_hash(train, a, b) in hashes


def test_batches():
    images = data.ImageSet(torch.arange(10).view(10, 1, 1, 1).expand(10, 4, 4, 3).to(torch.uint8), torch.arange(10))
    seen = [index.tolist() for _, _, index in data.batches(images, pretext.Classification, 4, "cpu")]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    part = torch.tensor([1, 3, 5, 7, 9])
    for x, labels, index in data.batches(images, pretext.Classification, 2, "cpu", part, seed=0):
        assert x.shape == (2, 3, 4, 4) and x[:, 0, 0, 0].tolist() == labels.tolist() == index.tolist()
        assert set(index.tolist()) <= set(part.tolist())
    orders = {
        tuple(i.item() for _, _, index in data.batches(images, pretext.Rotation, 5, "cpu", seed=(0, k)) for i in index)
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
    assert (objects == torch.eye(10, dtype=torch.bool)[train.labels]).float().mean() > 0.99  # each its own class alone
    assert train.masks.flatten(1).float().std(1).min() > 0
    assert train.mask_classes == ["sky", "ground", *shapes.SHAPES]
    small = data.load("shapes", size=8)[0]
    assert torch.equal(small.masks, train.masks[:, 2::4, 2::4]) and small.mask_classes == train.mask_classes
    # light from above: over all images the upper half is the brighter one
    brightness = train.images.float().mean((0, 2, 3))
    assert brightness[:16].mean() > brightness[16:].mean() + 10


def test_cifar10_without_the_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--download"):
        data.load("cifar10", tmp_path)

    def offline(*args, **kwargs):
        from urllib.error import URLError

        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(InputError, match="no network"):
        data.load("cifar10", tmp_path, download=True)


def test_cifar10_through_torchvision(tmp_path, monkeypatch):
    """The real loading code, on a small archive in CIFAR-10's format."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    root = tmp_path / CIFAR10.base_folder
    root.mkdir()

    def put(name, content):
        (root / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((root / name).read_bytes()).hexdigest()]

    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (6, 3072)).astype(np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)]
    train_list = [put(name, {"data": pixels, "labels": [0, 1, 2, 3, 4, 5]}) for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", [put("test_batch", {"data": pixels, "labels": [9] * 6})])
    meta = put("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    train, test = data.load("cifar10", tmp_path, limit=20)
    assert train.images.shape == (20, 32, 32, 3) and test.labels.tolist() == [9] * 6
    assert test.images[0].permute(2, 0, 1).flatten().tolist() == pixels[0].tolist()
    assert train.classes == [str(i) for i in range(10)]


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
