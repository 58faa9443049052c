"""Every benchmark runs, and what its competitors give is right; sizes are tiny, no times are checked."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(f for f in (ROOT / "benchmarks").glob("*.py") if "measure.main(" in f.read_text())


@pytest.mark.slow  # a compile or more each
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_benchmark_runs(file):
    run = subprocess.run([sys.executable, file, "--smoke"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "ratio" in run.stdout


def test_the_page_shows_the_results():
    page = runpy.run_path(str(ROOT / "benchmarks" / "page.py"))
    text = page["PAGE"].read_text()
    assert page["written"](text) == text, "python benchmarks/page.py"
