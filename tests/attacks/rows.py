"""The hostile artifacts: one row each, with who makes it and what must hold."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.attacks.goods import KINDS

PLANTED = "planted_by_an_attacker"  # a module that lies where Python finds it, and writes the marker
SECRET = "token-of-somebody-else-4711"


class Kit(NamedTuple):
    """What an attacker knows: where a marker would show that code ran, and a file that is not his."""

    marker: Path
    secret: Path
    command: str


class Row(NamedTuple):
    """A hostile artifact.

    Attributes:
        name: what it tries.
        kind: of which kind it is, as in `goods.KINDS`.
        spoil: makes it out of a whole artifact; called with its path and a `Kit`.
        refused: the doors that must raise an error; of the others either is fine. ``"all"`` for all.
        checked: whether what comes out must be what was saved.
        slow: whether it runs in the second pass.
    """

    name: str
    kind: str
    spoil: Callable[[Path, Kit], None]
    refused: tuple[str, ...] | str = ()
    checked: bool = False
    slow: bool = False


ROWS: list[Row] = []


def row(name, *kinds, **options):
    """Adds a row for each kind."""

    def add(spoil):
        there = [kind for kind in kinds if kind in KINDS]
        ROWS.extend(Row(f"{name}, {kind}", kind, spoil, **options) for kind in there)
        return spoil

    return add
