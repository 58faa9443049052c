"""Every example runs as a user runs it and shows what it says, in at most 100 lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.thinning import LATER

FOLDER = Path(__file__).parents[2] / "examples"
INTEROP = "accuracy on 360 held-out images"
SHOWN = {  # what the last lines say; digits.py is run by `make demo`
    "eject_resnet": "back in Keras: 0.0e+00",
    "flax_in_keras": INTEROP,
    "fine_tune": "everything",
    "flax_script": "Keras model: step 360",
    "gan": "step 600",
    "keras_in_linen": INTEROP,
    "keras_in_nnx": INTEROP,
    "large_models": "",
    "multi_device": "tensor parallel",
    "optax_in_keras": "same bits: True",
    "switch_optimizer": "",
}


# the others, and ResNet50's minutes, belong to the full run
SOON = ("fine_tune", "keras_in_nnx", "large_models", "optax_in_keras")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SOON, *(pytest.param(n, marks=LATER) for n in SHOWN if n not in SOON)])
def test_an_example_runs(name, tmp_path):
    command = [sys.executable, FOLDER / f"{name}.py"]
    environment = {**os.environ, "XLA_FLAGS": ""}  # as a user runs it, on one device
    options = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    run = subprocess.run(command, **options, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert SHOWN[name] in run.stdout


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_listed_and_short(file):
    assert file.stem in {*SHOWN, "digits"}
    assert len(file.read_text().splitlines()) <= 100
