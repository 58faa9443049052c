"""Large tables: one in so many of their tests runs in each pass, the rest in `make full-tables`.

``@pytest.mark.every(fast=2, slow=4)``: of the fast tests of a function one in two stays fast and the others
are slow ones; of the slow ones one in four stays, and the others belong to the full run. Which ones is drawn
from their names: each row of a table meets some checks, and each check some rows.
"""

import zlib
from typing import Any

import pytest

LATER = [pytest.mark.full, pytest.mark.tables]


def thin(item: Any) -> None:
    """Moves a test to a later pass where its table is thinned."""
    mark = item.get_closest_marker("every")
    if mark is None or item.get_closest_marker("full"):
        return
    if not item.get_closest_marker("slow"):
        if is_left_out(item, mark.kwargs.get("fast", 1)):
            item.add_marker(pytest.mark.slow)
    elif is_left_out(item, mark.kwargs.get("slow", 1)):
        for later in LATER:
            item.add_marker(later)


def is_left_out(item: Any, every: int, draw: str = "") -> bool:
    """Whether a test of a table is not the one in so many that runs; another `draw` takes others."""
    return hasattr(item, "callspec") and zlib.crc32((draw + item.nodeid).encode()) % every != 0
