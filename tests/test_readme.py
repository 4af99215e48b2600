"""The two commands that the README opens with: their defaults are accepted, and on few images for
one epoch they give a result."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
