"""What a module may import: nothing POSIX-only, and no torch where a script must start without it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
WITHOUT_TORCH = ["cli", "correlate", "genotypes", "report", "sample", "visualize"]


def import_without(module, *missing):
    block = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    code = f"import sys; {block}import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_needs_posix():
    """As on Windows. Python's and torch's own modules come first, which know how to do without."""
    code = """
import sys, importlib, filelock, matplotlib.figure, scipy.stats, torch, torch.utils.data, torchvision
import torch.distributed, torch.utils.flop_counter, torch.optim.swa_utils, torchvision.datasets, os, subprocess
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
for name in ("uname", "fork", "sched_getaffinity", "getuid"):
    if hasattr(os, name):
        delattr(os, name)
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *MODULES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"cli", "data", "runs", "sample", "search", "train"} <= set(MODULES)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_starts_without_torch(module):
    import_without(module, "torch", "torchvision")
