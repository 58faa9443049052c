"""Writes the tables of round trips in docs/checkpoints.md: ``python -m docs.generate.round_trips``."""

from pathlib import Path

import keras_flax_bridge  # noqa: F401, before keras: it chooses the backend
from docs.generate.pages import replaced
from tests.tables.round_trips import NO_FILE, READERS, ROWS, WRITERS, Row, refusal

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def tables() -> str:
    """One table for each writer, and the reasons for what is refused."""
    reasons: list[str] = []
    blocks = [_table(writer, reasons) for writer in WRITERS]
    notes = "".join(
        f"{number}. {reason[0].upper()}{reason[1:]}.\n" for number, reason in enumerate(reasons, 1)
    )
    return "\n".join([*blocks, notes])


def _table(writer: str, reasons: list[str]) -> str:
    head = f"| written by {writer} | {' | '.join(READERS)} |", f"|---|{'---|' * len(READERS)}"
    rows = (
        f"| {row.name} | {' | '.join(_cell(row, writer, reader, reasons) for reader in READERS)} |"
        for row in ROWS
    )
    return "\n".join([*head, *rows, ""])


def _cell(row: Row, writer: str, reader: str, reasons: list[str]) -> str:
    refused = refusal(row, writer, reader)
    reason = NO_FILE.get((row.name, writer)) or (refused and refused.reason)
    if not reason:
        return "exact"
    if reason not in reasons:
        reasons.append(reason)
    return f"refused ({reasons.index(reason) + 1})"


def written(page: str) -> str:
    return replaced(page, "round trips", tables())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
