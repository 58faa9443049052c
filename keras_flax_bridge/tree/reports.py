"""The protocol of all reports: rows, a verdict, JSON, and a table for terminals and notebooks.

Only uses the standard library until a table is drawn: `doctor` must work if nothing else can be imported.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from keras_flax_bridge.errors import printable

_WIDE = 10_000  # columns: a path is never broken


@runtime_checkable
class Report(Protocol):
    """The protocol of all reports; ``print(report)`` writes the report as text."""

    @property
    def rows(self) -> tuple[Any, ...]:
        """One NamedTuple for each thing that is reported, with names as they are in the file."""
        ...

    @property
    def ok(self) -> bool:
        """Whether nothing was found that is wrong; True for a report that only lists."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types, accepted by ``json.dumps``."""
        ...

    def __rich__(self) -> Any:
        """The renderable that rich prints on a terminal."""
        ...

    def _repr_html_(self) -> str:
        """The HTML that a notebook displays; every name is escaped."""
        ...


class Line(NamedTuple):
    """One line of a table: its cells, and whether it is a total."""

    cells: tuple[str, ...]
    is_total: bool = False


class Table(NamedTuple):
    r"""The table of a report. Its texts may contain any characters: they are escaped when it is drawn.

    Attributes:
        title: the line above the table.
        columns: their names.
        lines: the cells, a line each.
        notes: lines below the table.
        right: names of the columns that are aligned to the right, as numbers are.

    Example:
        >>> lines = (Line(("a\n", "8")), Line(("<b>", "16")))
        >>> table = Table("leaves", ("path", "bytes"), lines, right={"bytes"})
        >>> print(table)
        leaves
        path  bytes
        a\n       8
        <b>      16
        >>> "<td>&lt;b&gt;</td>" in table.to_html()
        True
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    right: Iterable[str] = frozenset()

    def __rich__(self) -> Any:
        from rich.console import Group  # on first use: it takes a while to load, and `doctor` needs none
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False)  # rich would break its own title at the table's width
        for name in self.columns:
            table.add_column(name, justify="right" if name in self.right else "left", overflow="fold")
        for cells, is_total in self.lines:
            table.add_row(*(Text(printable(cell), style="bold" if is_total else "") for cell in cells))
        return Group(_text(self.title, "italic"), table, *map(_text, self.notes))

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=_WIDE, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def to_html(self) -> str:
        """The table as HTML; every text in it is escaped."""
        head = "".join(f"<th>{_escaped(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(self._cells(line))}</tr>" for line in self.lines)
        notes = "".join(f"<p>{_escaped(note)}</p>" for note in self.notes)
        caption = f"<caption>{_escaped(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _cells(self, line: Line) -> Iterable[str]:
        for name, cell in zip(self.columns, line.cells, strict=True):
            style = ' style="text-align: right"' if name in self.right else ""
            text = _escaped(cell.strip())
            yield f"<td{style}>{f'<b>{text}</b>' if line.is_total and text else text}</td>"


def table_of(
    title: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]], notes: Iterable[str] = ()
) -> Table:
    r"""The table of rows without a special layout: a column for each field.

    >>> print(table_of("runs", ("name", "loss", "same"), [("a", 0.25, True)], ["1 run"]))
    runs
    name  loss  same
    a     0.25  yes
    1 run
    """
    rows = list(rows)
    right = {
        name
        for i, name in enumerate(columns)
        if rows and all(isinstance(row[i], (int, float)) and not isinstance(row[i], bool) for row in rows)
    }
    lines = tuple(Line(tuple(map(_cell, row))) for row in rows)
    return Table(title, tuple(columns), lines, tuple(notes), right)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_json(value: Any) -> Any:
    """A value as JSON types: a NamedTuple becomes an object, a number that JSON lacks a string.

    >>> as_json(Line(("a", "b"))), as_json({"largest": float("inf")})
    ({'cells': ['a', 'b'], 'is_total': False}, {'largest': 'inf'})
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: as_json(part) for name, part in zip(value._fields, value, strict=True)}
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return float(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def _text(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style=style)


def _escaped(text: str) -> str:
    return html.escape(printable(text))
