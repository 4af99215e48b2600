import os

# Several tests run at a time, each on one thread. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DATA = Path(os.environ.get("UNNAS_DATA", "/nonexistent"))


def pytest_collection_modifyitems(items):
    """The longest first, so that no process of pytest-xdist ends with them."""
    long = ("test_readme.py", "test_benchmark.py")
    items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """The folder of reference values and real images that UNNAS_DATA names; its tests are skipped
    without it."""
    if not DATA.is_dir():
        pytest.skip("UNNAS_DATA is not set to a folder of reference data")
    return DATA


def count_params(module):
    return sum(p.numel() for p in module.parameters())


def photo(width, height, seed=0):
    """Something smooth, so that JPEG keeps it: red grows to the right, green downwards."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    blue = np.full_like(x, (seed * 37 % 256) / 255)
    return Image.fromarray((np.stack([x, y, blue], -1) * 255).astype(np.uint8))


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's layout with what its files are like; n01 has 8 images to train, n02 has 20, n03
    none."""
    root = tmp_path / "imagenet"
    for folder in ("train/n01", "train/n02", "train/n03", "val/n01", "val/n02"):
        (root / folder).mkdir(parents=True)
    n01, n02 = root / "train" / "n01", root / "train" / "n02"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(80, 60).save(n01 / "really_a_png.JPEG", format="PNG")
    photo(80, 60).convert("L").save(n01 / "grey.JPEG")
    photo(80, 60).convert("CMYK").save(n01 / "cmyk.JPEG")
    photo(80, 60).save(n01 / "turned.JPEG", exif=exif)
    photo(80, 60).save(n01 / "broken_tags.JPEG", exif=b"Exif\0\0II*\0nonsense")
    two = dict(format="MPO", save_all=True, append_images=[photo(80, 60)])
    photo(80, 60).save(n01 / "two_in_one.JPEG", **two)
    photo(1, 500).save(n01 / "high.png")
    photo(500, 1).save(n01 / "wide.png")
    for k in range(20):
        photo(90 + k, 75, k).save(n02 / f"{k:02}.JPEG")
    (n02 / "readme.txt").write_text("no image")
    for k in range(5):
        photo(80, 60).save(root / f"val/n0{1 + k % 2}/{k}.JPEG")
    return root
