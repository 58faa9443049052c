"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Gives back what the C library keeps of freed memory, which can be several times what is in use.

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
