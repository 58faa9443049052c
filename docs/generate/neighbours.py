"""Writes docs/neighbours.md: which versions install beside others: ``python -m docs.generate.neighbours``.

For each library of `NEIGHBOURS` uv's resolver gets the bounds of pyproject.toml and that library; nothing is
installed. It needs the network and uv (``UV=path`` names it), so the tests only compare the page with
pyproject.toml.
"""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from docs.generate.pages import project

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "neighbours.md"
NEIGHBOURS = (
    "keras-hub",
    "google-tunix",
    "google-tunix[prod]",
    "qwix",
    "maxtext",
    "maxtext[tpu]",
    "kithara",
    "kithara[tpu]",
    "tensorflow-cpu",
    "torch",
    "grain",
)
PYTHON, OTHER_PYTHONS = "3.12", ("3.11", "3.13", "3.14")
PLATFORM = "x86_64-manylinux_2_40"  # wheels for TPU need a recent glibc
TOLD = ("keras", "jax", "flax", "optax", "orbax-checkpoint")
HEAD = """# Beside other libraries

`python -m docs.generate.neighbours` writes this page.
It asks uv's resolver for one set of versions that this package and another library both allow.
Nothing is installed or run: a set of versions says that no bounds contradict each other.

The bounds of this package:

{bounds}

## The newest versions

What installs together with each library, on Python {python} and Linux.
Where a row has no versions, nothing does, and the last column says why.

{newest}

## The oldest versions

The newest release of the library, with the oldest versions of the others that it and this package allow.

{oldest}

## Other versions of Python

{others}
"""

BY_ITSELF = "also without this package: "

Versions = dict[str, str]  # of packages, by name


class Answer(NamedTuple):
    """What the resolver said: versions, or the reason why there are none."""

    versions: Versions
    reason: str = ""


Ask = Callable[[Sequence[str], str, str], Answer]  # requirements, Python, the strategy of the resolver


def bounds() -> list[str]:
    """What pyproject.toml requires."""
    return list(project()["dependencies"])


def ask(requirements: Sequence[str], python: str, strategy: str = "highest") -> Answer:
    """What uv finds for these requirements."""
    command = [os.environ.get("UV", "uv"), "pip", "compile", "-", "--quiet", "--no-config", "--no-header"]
    options = ["--no-annotate", "--resolution", strategy, "--python-version", python]
    done = subprocess.run(
        [*command, *options, "--python-platform", PLATFORM],
        input="\n".join(requirements),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return Answer({}, reason(done.stderr))
    return Answer(dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE)))


def reason(report: str) -> str:
    """What forbids it: the first premise of the resolver's report, on one line."""
    text = " ".join(report.split())
    found = re.search(r"Because (.*?)(?:,? we can conclude|, and because|$)", text)
    if found is None:
        raise RuntimeError(f"uv: {text}")
    return re.sub(r"\{[^}]*\}", "", found[1]).rstrip(", ")  # without markers of platforms


def name_of(neighbour: str) -> str:
    """The name of a package, without its extras."""
    return neighbour.partition("[")[0]


# --- the rows of a table


def newest(neighbour: str, asked: Ask) -> tuple[Versions, str]:
    """The versions that come out, and what forbids the newest release of the library."""
    name = name_of(neighbour)
    alone = asked([neighbour], PYTHON, "highest")
    if not alone.versions:
        return {}, f"{BY_ITSELF}{alone.reason}"
    together = asked([*bounds(), neighbour], PYTHON, "highest")
    if together.versions.get(name) == alone.versions[name]:
        return together.versions, ""
    latest = f"{neighbour}=={alone.versions[name]}"
    return together.versions, f"{latest}: {asked([*bounds(), latest], PYTHON, 'highest').reason}"


def oldest(neighbour: str, latest: str, asked: Ask) -> tuple[Versions, str]:
    """The oldest versions with a release of the library."""
    answer = asked([*bounds(), f"{neighbour}=={latest}"], PYTHON, "lowest-direct")
    return answer.versions, answer.reason


def row(neighbour: str, versions: Versions, remark: str) -> str:
    """A line of a table: the versions of the library and of what is told."""
    names = (name_of(neighbour), *TOLD)
    return f"| `{neighbour}` | {' | '.join(versions.get(name, '-') for name in names)} | {remark} |"


def table(rows: Sequence[str]) -> str:
    """The rows under their heads."""
    head = f"| library | its version | {' | '.join(TOLD)} | what forbids its newest release |"
    return "\n".join([head, "|---" * (len(TOLD) + 3) + "|", *rows])


def others(asked: Ask) -> str:
    """What has no solution on other versions of Python, or that everything has one."""
    lines = []
    for python in OTHER_PYTHONS:
        found = [(neighbour, forbidden(neighbour, python, asked)) for neighbour in NEIGHBOURS]
        failed = [f"  - `{neighbour}`: {why}" for neighbour, why in found if why]
        lines += [f"- Python {python}: all but" if failed else f"- Python {python}: all", *failed]
    return "\n".join(lines)


def forbidden(neighbour: str, python: str, asked: Ask) -> str:
    """Why a library has no solution together with this package; empty if it has one."""
    together = asked([*bounds(), neighbour], python, "highest")
    if together.versions:
        return ""
    alone = asked([neighbour], python, "highest")
    return together.reason if alone.versions else f"{BY_ITSELF}{alone.reason}"


def page(asked: Ask = ask) -> str:
    """The whole page."""
    first = {neighbour: newest(neighbour, asked) for neighbour in NEIGHBOURS}
    last = {
        neighbour: oldest(neighbour, versions[name_of(neighbour)], asked)
        for neighbour, (versions, _) in first.items()
        if versions
    }
    return HEAD.format(
        bounds="\n".join(f"- `{bound}`" for bound in bounds()),
        python=PYTHON,
        newest=table([row(neighbour, *found) for neighbour, found in first.items()]),
        oldest=table([row(neighbour, *found) for neighbour, found in last.items()]),
        others=others(asked),
    )


if __name__ == "__main__":
    PAGE.write_text(page())
