"""The two commands that the README opens with, with their defaults."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_search_then_train_with_the_defaults(tmp_path):
    start = time.time()
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python (?:search|train)\.py .*$", text, re.M)[:2]
    assert [c.split()[1] for c in commands] == ["search.py", "train.py"]
    for command in commands:
        script, *argv = command.split()[1:]
        subprocess.run([sys.executable, ROOT / script, *argv], cwd=tmp_path, check=True)
    (result,) = tmp_path.rglob("result.json")
    result = json.loads(result.read_text())
    assert result["final"] > 30  # of 10 classes
    print(f"{time.time() - start:.0f} s")
