"""A few injections of tests/faults_files.py, which as a script makes many."""

import random

import faults_files
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("json_files", 14), ("checkpoints", 8)])
def test_injections(tmp_path, name, count):
    seed = random.randrange(10**6)
    verdicts = list(getattr(faults_files, name)(count, random.Random(seed), tmp_path))
    wrong = [verdict for verdict in verdicts if verdict[1] != "survived"]
    assert len(verdicts) == count and not wrong, f"seed {seed}"
