import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests at a time, one thread each; before torch is imported
from pathlib import Path

import pytest
import torch

DATA = Path(os.environ.get("UNNAS_DATA", "/nonexistent"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """The folder of reference values and real images that UNNAS_DATA names; its tests are skipped without it."""
    if not DATA.is_dir():
        pytest.skip("UNNAS_DATA is not set to a folder of reference data")
    return DATA
