"""The speed table can still be made: its quick form, as a command."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import benchmark
import pytest

ROOT = Path(__file__).parent.parent
LINUX, CUDA = benchmark.PROCESS_STATUS.exists(), benchmark.DEVICE.type == "cuda"

ROWS = {  # of each part; memory is measured on Linux and GPUs
    "supernet": 6 + 2 * (LINUX or CUDA),
    "tasks": 6,
    "photos": 1,
    "training": 3 + CUDA,
    "index": 1 + LINUX,
    "archives": 4 + LINUX,
    "processes": 2,
    "growth": 4,
}


@pytest.mark.slow
def test_kernels_of_a_search_step():
    ours, baseline, _ = benchmark.count_kernels(benchmark.CIFAR)
    assert ours <= 0.25 * baseline


@pytest.mark.slow
def test_quick_table(tmp_path):
    command = [sys.executable, "tests/benchmark.py", "--quick", "--json", tmp_path / "speed.json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert Counter(row["part"] for row in rows) == ROWS and set(ROWS) == set(benchmark.PARTS)
    for row in rows:
        numbers = [row["ours"]]
        if "baseline" in row:
            numbers += [row["baseline"], row["ratio"], *row["spread"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers), row
    printed = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in printed]
    assert names == ["what", "---", *(row["name"] for row in rows)]
    compared = [row for row in rows if "baseline" in row]
    assert len(compared) >= len(rows) - 5 and done.stdout.count("x (") == len(compared)
