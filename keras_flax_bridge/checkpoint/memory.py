"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Returns memory that the C library keeps after it was freed, often several times the memory in use.

    glibc keeps freed blocks for each thread that allocated them, and storage libraries read in many.
    Other C libraries have no such function, nor such a need.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
