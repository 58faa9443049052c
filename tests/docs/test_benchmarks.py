"""The page shows what the benchmarks wrote. That each runs is seen by ``make bench ARGS=--smoke``."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_results():
    page = runpy.run_path(str(ROOT / "benchmarks" / "page.py"))
    text = page["PAGE"].read_text()
    assert page["written"](text) == text, "python benchmarks/page.py"
