"""Writes the tables of docs/versions.md: ``python -m docs.generate.versions``.

The oldest versions are those of pyproject.toml, the ones in the middle those of .ci/middle.txt.
"""

from pathlib import Path

from docs.generate.pages import project, replaced
from keras_flax_bridge.startup.compat import TABLE, Capability

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "versions.md"
NEWEST = {  # what the tests passed on last
    "keras": "3.15.1",
    "jax": "0.10.2; on Python 3.13 0.12.0.1",
    "jaxlib": "0.10.2; on Python 3.13 0.12.0.1",
    "flax": "0.12.8; on Python 3.13 0.12.12",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "numpy": "2.4.6; on Python 3.13 2.5.5",
}


def least() -> dict[str, str]:
    """The oldest version of each package that is needed."""
    return dict(line.split(">=") for line in project()["dependencies"])


def middle() -> dict[str, str]:
    """The versions of `make test-middle`; what it leaves open is the newest."""
    lines = (ROOT / ".ci" / "middle.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def versions() -> str:
    head = ["| package | oldest | middle | newest |", "|---|---|---|---|"]
    oldest, between = least(), middle()
    rows = [
        f"| `{n}` | {oldest[n]} | {between.get(n, newest.split(';')[0])} | {newest} |"
        for n, newest in NEWEST.items()
    ]
    return "\n".join([*head, *rows, ""])


def line(entry: Capability) -> str:
    return f"| {entry.name} | {entry.package} {entry.since} | {entry.without} | `{entry.place}` |"


def capabilities() -> str:
    head = ["| what | since | in older versions | looked for at |", "|---|---|---|---|"]
    return "\n".join([*head, *map(line, TABLE.values()), ""])


def written(page: str) -> str:
    for name, table in {"versions": versions, "capabilities": capabilities}.items():
        page = replaced(page, name, table())
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
