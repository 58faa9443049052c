"""Writes docs/full-run.md from what pytest recorded: ``python -m docs.generate.full_run FILE.xml``."""

import platform
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "full-run.md"
HEAD = """# The last full run

`make test-full` runs what takes hours: every attack through every door, 5,000 files from the fuzzer,
500 saves on a disk that fails in between, every backbone of KerasHub through training, checkpoints and Flax.
It writes this page.

"""
PACKAGES = (
    "keras-flax-bridge",
    "jax",
    "flax",
    "keras",
    "keras-hub",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
)
OUTCOMES = ("passed", "failed", "skipped")


class Tests(NamedTuple):
    """The tests of one function: how many there were of each outcome, and how long they took."""

    counts: Counter[str]
    seconds: float


def read(recorded: Path) -> dict[str, Tests]:
    """What pytest recorded with ``--junitxml``, by file and function."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(recorded).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py: {case.get('name', '').partition('[')[0]}"
        counts[name][_outcome(case)] += 1
        seconds[name] += float(case.get("time", 0))
    return {name: Tests(counts[name], seconds[name]) for name in sorted(counts)}


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def versions() -> str:
    """On what it ran."""
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, {found}"


def table(tests: dict[str, Tests], commit: str, ran_on: str) -> str:
    """The commit, the versions, and a row for each function of tests."""
    total = Tests(sum((t.counts for t in tests.values()), Counter()), sum(t.seconds for t in tests.values()))
    rows = [_row(f"`{name}`", found) for name, found in tests.items()] + [_row("all", total)]
    head = ["| tests | passed | failed | skipped | minutes, of all workers |", "|---|---|---|---|---|"]
    return "\n".join([f"Commit `{commit}`, {ran_on}.", "", *head, *rows, ""])


def _row(name: str, tests: Tests) -> str:
    counts = " | ".join(f"{tests.counts[outcome]:,}" for outcome in OUTCOMES)
    return f"| {name} | {counts} | {tests.seconds / 60:.1f} |"


def main(recorded: str) -> None:
    """Writes the page."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    PAGE.write_text(HEAD + table(read(Path(recorded)), commit, versions()))


if __name__ == "__main__":
    main(sys.argv[1])
