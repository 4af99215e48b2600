"""README's commands: the two that it opens with, and the way from photos to a classifier."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import photo
from PIL import Image

import search
import train

ROOT = Path(__file__).parent.parent
FEW = ["--epochs", "1", "--limit", "200"]


@pytest.mark.slow
def test_search_then_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python (?:search|train)\.py .*$", text, re.M)[:2]
    assert [c.split()[1] for c in commands] == ["search.py", "train.py"]
    for command, module in zip(commands, (search, train)):
        script, *argv = command.split()[1:]
        subprocess.run([sys.executable, ROOT / script, *argv, *FEW], check=True)
        args = module.parse_args(argv)
        assert args.epochs > 1 and args.limit != 200 and args.dataset == "shapes"
    (result,) = tmp_path.rglob("result.json")
    result = json.loads(result.read_text())
    assert result["identity"]["limit"] == 200 and 0 <= result["final"] <= 100


@pytest.mark.slow
def test_from_unlabelled_photos_to_a_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for k in range(24):
        name = f"{'abcdefghijklmnopqrstuvwxyz'[k]}.jpg"
        for folder in ("my_photos", f"my_labelled/{'train' if k < 16 else 'val'}/{k % 2}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture = photo(120, 100, k)
            if k % 2:
                picture = picture.rotate(180)
            picture.save(tmp_path / folder / name)
    text = (ROOT / "README.md").read_text()
    section = text.partition("to a classifier\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^python (.*?)(?: +#.*)?$", section, re.M)
    small = (
        "--limit 16 --width 4 --layers 2 --epochs 1 --batch_size 4 --size 16 --device cpu".split()
    )
    for command in commands:
        script, *argv = command.split()
        argv += small if script in ("search.py", "train.py") else []
        module = importlib.import_module(script.removesuffix(".py"))
        capsys.readouterr()
        module.main(module.parse_args(argv))
    assert [name.split()[0] for name in commands] == [
        *["data.py", "visualize.py", "search.py", "train.py", "visualize.py", "visualize.py"]
    ]
    for name in ("tasks.png", "predictions.png"):
        assert Image.open(tmp_path / name).width > 500
    (image,) = json.loads(capsys.readouterr().out)["images"]
    (prediction,) = image["predictions"]
    assert image["image"] == "my_photos/a.jpg" and prediction["classes"].keys() == {"0", "1"}
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    code += "assert maps.shape == (1, 768, 7, 7) and task.classes == ['0', '1'], maps.shape"
    exec(code, {})
