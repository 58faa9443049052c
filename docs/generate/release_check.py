"""Compares the versions that a release names: ``python -m docs.generate.release_check [TAG]``.

`make release-rehearsal` calls it, with what is then in ``dist/`` and ``docs/_build/html``. With a tag it
requires what only a release needs.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.generate import repository
from docs.generate.pages import project

ROOT = Path(__file__).parents[2]
NAME = "keras_flax_bridge"


def version(root: Path) -> str:
    """The version in pyproject.toml, which the others must have."""
    return str(project(root)["version"])


def named(root: Path) -> Iterator[tuple[str, str]]:
    """Where a version is named, and which."""
    for file, pattern in {
        f"{NAME}/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "docs/_build/html/objects.inv": r"^# Version: (.+)$",
        "CHANGELOG.md": r"^(?:This becomes (.+?),.*|## \[(\d.*)\] - .*)$",
    }.items():
        yield file, _first(root / file, pattern)
    for kind, pattern in (("wheel", rf"{NAME}-(.+)-py3-none-any\.whl"), ("sdist", rf"{NAME}-(.+)\.tar\.gz")):
        files = sorted(path.name for path in (root / "dist").glob("*"))
        found = [match[1] for file in files if (match := re.fullmatch(pattern, file))]
        yield f"dist/, the {kind}", ", ".join(found) or "none"


def _first(path: Path, pattern: str) -> str:
    """The first version in a file that a pattern finds."""
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    found = re.search(pattern, text, re.MULTILINE)
    return next(filter(None, found.groups())) if found else "none"


def differences(root: Path = ROOT) -> list[str]:
    """Each place that names another version than pyproject.toml."""
    wanted = version(root)
    return [f"{where}: got {found}, expected {wanted}" for where, found in named(root) if found != wanted]


def not_ready(tag: str, root: Path = ROOT) -> list[str]:
    """What is missing for a release under a tag."""
    wanted = version(root)
    changes = (root / "CHANGELOG.md").read_text()
    lacking = []
    if tag != f"v{wanted}":
        lacking.append(f"tag: got {tag}, expected v{wanted}")
    if not re.search(rf"^## \[{re.escape(wanted)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        lacking.append(f"CHANGELOG.md: no heading '## [{wanted}] - YYYY-MM-DD'")
    if re.search(r"^## \[Unreleased\]\s+(?!## )\S", changes, re.MULTILINE):
        lacking.append("CHANGELOG.md: there are lines under Unreleased")
    if repository.address(root) == repository.PLACEHOLDER:
        lacking.append("pyproject.toml: the address of the repository is a placeholder")
    return lacking


def main(tag: str = "") -> None:
    """Prints what differs, and ends with exit code 1 if anything does."""
    wrong = [*differences(), *(not_ready(tag) if tag else [])]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{NAME} {version(ROOT)}: all places name this version")


if __name__ == "__main__":
    main(*sys.argv[1:])
