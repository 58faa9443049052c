"""Writes what is deprecated into docs/stability.md: ``python -m docs.generate.deprecations``."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from docs.generate.pages import replaced
from keras_flax_bridge.tree.words.word import Deprecated
from keras_flax_bridge.tree.words.words_of_versions import DEPRECATED

PAGE = Path(__file__).parents[2] / "docs" / "stability.md"


def table(rows: Iterable[Deprecated]) -> str:
    lines = [
        f"| {', '.join(f'`{door}`' for door in row.doors.split())} | `{row.old}` | `{row.new}` "
        f"| {row.since} | {row.removal} |"
        for row in rows
    ]
    head = ["| of | old | use | since | goes in |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines, ""]) if lines else "Nothing.\n"


def written(page: str) -> str:
    return replaced(page, "deprecations", table(chain.from_iterable(DEPRECATED.values())))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
