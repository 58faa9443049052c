"""Writes the table of docs/coverage.md from the contract table: ``python -m docs.generate.coverage``."""

import re
from functools import partial
from pathlib import Path

import keras_flax_bridge  # noqa: F401, before keras: it chooses the backend
from tests.tables.contracts import ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
BLOCK = re.compile(r"(?<=<!-- rows -->\n).*(?=<!-- end of rows -->)", re.DOTALL)


def about(row: Row) -> str:
    """The first line of the docstring of the builder of a row, or of the class that it builds."""
    if row.heavy:
        return f"`keras.applications.{row.name}`, without weights."
    if isinstance(row.build, partial):
        return row.build.args[0].__doc__.splitlines()[0]
    return (row.build.__doc__ or f"Optimizer option `{row.name}`.").splitlines()[0]


def remarks(row: Row) -> str:
    notes = {
        "up to float rounding, since XLA fuses the two programs differently": not row.exact,
        "no `TrainState.abstract`: building it requires values (`UnsupportedLayerError`)": not row.abstract,
        "without the checks that compile another program": row.heavy,
    }
    return "; ".join(note for note, holds in notes.items() if holds)


def table() -> str:
    lines = [f"| `{row.name}` | {about(row)} | {remarks(row)} |" for row in ROWS]
    return "\n".join(["| row | model | remarks |", "|---|---|---|", *lines, ""])


def written(page: str) -> str:
    return BLOCK.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
