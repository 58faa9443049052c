"""Writes what is deprecated into docs/stability.md: ``python -m docs.generate.deprecations``."""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from keras_flax_bridge.tree.words.word import Deprecated
from keras_flax_bridge.tree.words.words_of_versions import DEPRECATED

PAGE = Path(__file__).parents[2] / "docs" / "stability.md"
BLOCK = re.compile(r"(?<=<!-- deprecations -->\n).*(?=<!-- end of deprecations -->)", re.DOTALL)


def table(rows: Iterable[Deprecated]) -> str:
    lines = [
        f"| {', '.join(f'`{door}`' for door in row.doors.split())} | `{row.old}` | `{row.new}` "
        f"| {row.since} | {row.removal} |"
        for row in rows
    ]
    head = ["| of | old | use | since | goes in |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines, ""]) if lines else "Nothing.\n"


def written(page: str) -> str:
    return BLOCK.sub(lambda _: table(chain.from_iterable(DEPRECATED.values())), page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
