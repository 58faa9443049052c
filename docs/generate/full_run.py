"""Writes a section of docs/full-run.md from what pytest recorded: ``docs.generate.full_run PART FILE``."""

import platform
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.metadata import distributions, version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "full-run.md"
HEAD = """# The last full run

`make test-full` runs what takes hours, in parts, which may be run by themselves. Each writes its section.
"""
PARTS = {
    "attacks": "every attack through every door",
    "fuzzer": "5,000 files from the fuzzer",
    "saves": "500 saves on a disk that fails in between",
    "kills": "30 kills of a fit, which goes on after each, and 25 of a process that saves",
    "resumes": "fits on every kind of data, broken off by every rule",
    "applications": "every model of keras.applications, migrated",
    "memory": "the memory that doors take",
    "tables": "the tests that the large tables leave out of the slow pass",
    "backbones": "every backbone of KerasHub through training, checkpoints and Flax",
    "peers": "tests of Flax with wrappers of Keras layers; `tests/peers/reasons.py` lists the skipped",
}
NOT_RUN = "Not run yet.\n"
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
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES if _is_installed(name))
    return f"Python {platform.python_version()}, {found}"


def _is_installed(name: str) -> bool:
    return any(distributions(name=name))


def table(tests: dict[str, Tests], commit: str, ran_on: str) -> str:
    """The commit, the versions, and a row for each function of tests."""
    total = Tests(sum((t.counts for t in tests.values()), Counter()), sum(t.seconds for t in tests.values()))
    rows = [_row(f"`{name}`", found) for name, found in tests.items()] + [_row("all", total)]
    head = ["| tests | passed | failed | skipped | minutes, of all workers |", "|---|---|---|---|---|"]
    return "\n".join([f"Commit `{commit}`, {ran_on}.", "", *head, *rows, ""])


def _row(name: str, tests: Tests) -> str:
    counts = " | ".join(f"{tests.counts[outcome]:,}" for outcome in OUTCOMES)
    return f"| {name} | {counts} | {tests.seconds / 60:.1f} |"


def sections(page: str) -> dict[str, str]:
    """What a page says of each part."""
    found = dict(re.findall(r"^## (\w+): [^\n]*\n\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    return {part: found.get(part, NOT_RUN).rstrip() + "\n" for part in PARTS}


def page(found: dict[str, str]) -> str:
    """The page of these sections."""
    return "\n".join([HEAD, *(f"## {part}: {PARTS[part]}\n\n{text}" for part, text in found.items())])


def main(part: str, recorded: str) -> None:
    """Writes the section of a part; the others stay as they are."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    before = sections(PAGE.read_text() if PAGE.exists() else "")
    PAGE.write_text(page({**before, part: table(read(Path(recorded)), commit, versions())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
