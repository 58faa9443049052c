"""Writes the table of docs/interop.md from the rows and operations: ``python -m docs.generate.interop``."""

from pathlib import Path

import keras_flax_bridge  # noqa: F401, before keras: it chooses the backend
from docs.generate.pages import replaced
from tests.tables.keras_in_flax_operations import OPERATIONS
from tests.tables.keras_in_flax_rows import ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


def cell(row: Row) -> str:
    if row.refused:
        return f"refused: {row.refused}"
    # what runs, and what a test only traces, since it takes many seconds to compile
    return "numbers of some, shapes of the others" if row.heavy else "all ok"


def table() -> str:
    operations = "\n".join(f"- {name}" for name in OPERATIONS)
    lines = [f"| {row.name} | {cell(row)} |" for row in ROWS]
    rows = "\n".join([f"| layer | {len(OPERATIONS)} operations |", "|---|---|", *lines, ""])
    return f"{operations}\n\n{rows}"


def written(page: str) -> str:
    return replaced(page, "rows", table())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
