"""Writes the tables of docs/coverage.md from those of the tests: ``python -m docs.generate.coverage``."""

from functools import partial
from pathlib import Path

import keras_flax_bridge  # noqa: F401, before keras: it chooses the backend
from docs.generate.pages import replaced
from tests.tables import keras_hub_backbones as hub
from tests.tables.contracts import ROWS, Row

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


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
        "without the checks that compile another program": row.heavy,
    }
    return "; ".join(note for note, holds in notes.items() if holds)


def table() -> str:
    lines = [f"| `{row.name}` | {about(row)} | {remarks(row)} |" for row in ROWS]
    return "\n".join(["| row | model | remarks |", "|---|---|---|", *lines, ""])


def hub_table() -> str:
    """How many classes of KerasHub are tested, and what differs from the others or is left out."""
    tested = [row for row in (*hub.ROWS, *hub.TASKS) if not row.not_built]
    tasks = ", ".join(f"`{row.name}`" for row in hub.TASKS)
    head = f"{len(tested) - len(hub.TASKS)} backbones, and the tasks {tasks}. What differs:"
    remarks = [f"| `{row.name}` | {hub_remarks(row)} |" for row in hub.ROWS if hub_remarks(row)]
    return "\n".join([head, "", "| class | remarks |", "|---|---|", *remarks, ""])


def hub_remarks(row: hub.HubModel) -> str:
    notes = {
        "to float rounding": row.inexact,
        "not tested": row.not_built,
    }
    return "; ".join(f"{note}: {reason}" for note, reason in notes.items() if reason)


def written(page: str) -> str:
    for name, make in {"rows": table, "backbones": hub_table}.items():
        page = replaced(page, name, make())
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
