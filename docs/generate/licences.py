"""Writes docs/licences.md, the licences of the dependencies: ``python -m docs.generate.licences``.

Names and licences come from the metadata of the packages in this environment; which are needed, from
pyproject.toml and from there on from their metadata.
"""

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.generate.pages import project

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "licences.md"
OWN = "keras-flax-bridge"
EXTRAS = ("", "examples", "safetensors")  # what users install; the tools of development are not listed
HEAD = """# Licences

The package is under Apache-2.0. It ships no code of others.
These are the packages that are installed with it, as their metadata says.
`python -m docs.generate.licences` writes this page.
`make release-rehearsal` writes `dist/sbom.cdx.json`, a software bill of materials with their versions.
"""
SPDX = {  # what older metadata says in place of an identifier
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache License": "Apache-2.0",  # the first line of its text
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
}
TEXTS = {"Apache License, Version 2.0": "Apache-2.0", "MIT License": "MIT"}  # what their heads say


class Licensed(NamedTuple):
    """A package, its licence, and those of the listed packages that require it."""

    name: str
    licence: str
    required_by: tuple[str, ...]


def roots(extra: str) -> list[Requirement]:
    """What pyproject.toml requires, or an extra of it."""
    own = project()
    lines = own["optional-dependencies"][extra] if extra else own["dependencies"]
    return [Requirement(line) for line in lines]


def required(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    """What an installed package requires here, with these extras."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """The names of all packages that come with these, each with those that require it."""
    found: dict[str, set[str]] = {}
    waiting = [(requirement, OWN) for requirement in requirements]
    seen = set()
    while waiting:
        requirement, parent = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, set()).update({parent} - {name})
        key = name, frozenset(requirement.extras)
        if key not in seen:
            seen.add(key)
            waiting += [(needed, name) for needed in required(name, requirement.extras)]
    return found


def licence(name: str) -> str:
    """The SPDX expression of an installed package, from the newest field that says it."""
    fields = metadata.metadata(name)
    if expression := fields.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in fields.get_all("Classifier", []) if "License ::" in line
    ]
    said = [line for line in classifiers if line != "OSI Approved"] or [fields.get("License") or ""]
    first = [line.strip().partition("\n")[0].strip() for line in said]
    return " AND ".join(sorted({SPDX.get(line, line) for line in first})) or _from_its_text(name)


def _from_its_text(name: str) -> str:
    """The licence whose text a package ships, where its metadata names none."""
    for file in metadata.files(name) or []:
        if "LICENSE" in file.name:
            head = " ".join(file.read_text().split())[:200]
            return next((spdx for words, spdx in TEXTS.items() if words in head), "unknown")
    return "unknown"


def licensed(extra: str) -> list[Licensed]:
    """The packages of an extra beyond those that are there without it."""
    found = closure(roots(extra))
    there = closure(roots("")) if extra else {}
    return [
        Licensed(name, licence(name), tuple(sorted(found[name])))
        for name in sorted(found)
        if name not in there
    ]


def table(packages: Iterable[Licensed]) -> str:
    """One row for each package."""
    rows = [f"| {p.name} | {p.licence} | {', '.join(p.required_by)} |" for p in packages]
    return "\n".join(["| package | licence | required by |", "|---|---|---|", *rows, ""])


def page() -> str:
    """The whole page."""
    titles = {extra: f"With the extra `{extra}`" if extra else "Always" for extra in EXTRAS}
    return "\n".join([HEAD, *(f"## {title}\n\n{table(licensed(extra))}" for extra, title in titles.items())])


def listed(text: str) -> dict[str, str]:
    """The licences on the page, by package."""
    return dict(
        re.findall(
            r"^\| ([a-z0-9-]+) \| ([^|]+?) \|", text.replace("| package | licence |", ""), re.MULTILINE
        )
    )


if __name__ == "__main__":
    PAGE.write_text(page())
