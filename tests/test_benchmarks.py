"""Every benchmark runs, and what its competitors give is right; sizes are tiny, no times are checked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # a compile or more each
FILES = sorted(set((ROOT / "benchmarks").glob("*.py")) - {ROOT / "benchmarks" / "measure.py"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_benchmark_runs(file):
    run = subprocess.run([sys.executable, file, "--smoke"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "ratio" in run.stdout
