"""README's "Add a task, an op, a data set", carried out on a copy of the code: in the places that
it names and no others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# file: [(where, what to put before it)]
ADDED = {
    "pretext.py": [
        (
            "\nTASKS = dict(",
            '''
class Mirror(Task):
    """Whether an image is mirrored; both are in the batch."""

    num_classes = 2

    def prepare(self, images, labels, index, train):
        x = self.normalize(images, train)
        x = torch.stack([x, x.flip(3)], 1).flatten(0, 1)  # (2B, 3, H, W)
        return x, torch.arange(2, device=x.device).repeat(len(images))

''',
        ),
        ("cls=Classification", "mirror=Mirror, "),
    ],
    "ops.py": [
        (
            "\nOPS = {",
            """
def plain_conv_3x3(C, stride, affine, copies):
    EC = copies * C
    layer = conv(EC, EC, 3, stride, groups=copies)
    return ReLUConvBN(layer, bn=nn.BatchNorm2d(EC, affine=affine))

""",
        ),
        (
            '"skip_connect": lambda',
            '"plain_conv_3x3": plain_conv_3x3,\n'
            '"max_pool_5x5": lambda C, stride, affine, copies: nn.MaxPool2d(5, stride, 2),\n    ',
        ),
    ],
    "genotypes.py": [('"none",', '"plain_conv_3x3", "max_pool_5x5", ')],
    "data.py": [
        (
            "\nDATASETS = {",
            """
def read_noise(path, *_):
    for part in ("train", "test"):
        images = torch.from_numpy(np.load(path / f"{part}.npy"))
        dataset = ImageSet(images, torch.arange(20) % 2, ["even", "odd"])
        dataset.mean, dataset.std = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
        yield dataset

""",
        ),
        ('"shapes": read_shapes', '"noise": read_noise, '),
    ],
}
CODE = """
import json, sys, pytest, search, train
small = ["--dataset", "noise", "--data", "noise", "--width", "4", "--layers", "2"]
small += ["--epochs", "1", "--batch_size", "5", "--device", "cpu"]
search.main(search.parse_args([*small, "--task", "mirror", "--out", "s"]))
entry = json.load(open("s/genotype.json"))
for name in ("normal", "reduce"):
    entry["genotype"][name][:2] = [["plain_conv_3x3", 0], ["max_pool_5x5", 1]]
json.dump(entry, open("own.json", "w"))
for task in ("mirror", "cls"):
    argv = [*small, "--task", task, "--arch", "own.json", "--out", task]
    result = train.main(train.parse_args(argv))
    assert 0 <= result["final"] <= 100 and result["args"]["size"] == 16
equal = "tests/test_networks.py::test_supernet_equals_edge_by_edge"
halve = "tests/test_networks.py::test_ops_halve_alike_and_copies_are_independent"
cases = "cifar-13-ten_classes-1-layout1", "imagenet-64-jig-2-layout1"
tests = [*(f"{equal}[{case}]" for case in cases), f"{halve}[7]"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *tests]))
"""


@pytest.mark.slow
def test_a_task_two_ops_and_a_data_set_of_ones_own(tmp_path):
    (tmp_path / "tests").mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("pyproject.toml"), *ROOT.glob("tests/*.py")]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    for name, additions in ADDED.items():
        text = (tmp_path / name).read_text()
        for where, what in additions:
            assert text.count(where) == 1, (name, where)
            text = text.replace(where, what + where)
        (tmp_path / name).write_text(text)
    (tmp_path / "noise").mkdir()
    for part in ("train", "test"):
        np.save(
            tmp_path / "noise" / f"{part}.npy",
            np.random.RandomState(0).randint(0, 256, (20, 16, 16, 3), np.uint8),
        )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mirror on noise: 10 images for the weights" in done.stdout and "3 passed" in done.stdout
