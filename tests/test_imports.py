"""What a module may import: nothing that POSIX alone has, and no torch where scripts start without
it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
WITHOUT_TORCH = ["cli", "correlate", "genotypes", "likeness", "report", "sample", "visualize"]

# As on Windows. Python's, torch's and other packages' own modules come first: they know what to do
# without. In sys.modules None makes an import fail.
LIKE_WINDOWS = """
import os, subprocess, sys
import filelock, matplotlib.figure, scipy.stats, torch, torchvision.datasets
import torch.distributed, torch.optim.swa_utils, torch.utils.data, torch.utils.flop_counter
for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "mknod", "sched_getaffinity", "uname"):
    if hasattr(os, name):
        delattr(os, name)
"""
# Packages that look for torch in sys.modules must not find it, so nothing is put there.
NO_TORCH = """
import sys
class NoTorch:
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, NoTorch)
"""


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_no_module_needs_posix():
    assert {"cli", "data", "runs", "sample", "search", "train"} <= set(MODULES)
    done = run_python(f"{LIKE_WINDOWS}import {', '.join(MODULES)}; print('done'); import fcntl")
    assert done.stdout == "done\n", done.stderr
    assert "import of fcntl halted" in done.stderr  # so one of theirs would have failed


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_starts_without_torch(module):
    done = run_python(f"{NO_TORCH}import {module}")
    assert done.returncode == 0, done.stderr


def test_a_script_that_needs_torch_does_not():
    done = run_python(f"{NO_TORCH}import train")
    assert done.returncode == 1 and "ImportError: torch was imported" in done.stderr
