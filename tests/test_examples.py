"""The short examples run, reach what they promise, and stay short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ["keras_in_nnx", "keras_in_linen", "flax_in_keras"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_an_example_runs(name):
    file = ROOT / "examples" / f"{name}.py"
    environment = {**os.environ, "XLA_FLAGS": ""}  # as a user runs it, on one device
    run = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "accuracy on 360 held-out images" in run.stdout


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 100
