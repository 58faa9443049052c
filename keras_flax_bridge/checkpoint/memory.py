"""Returns freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h; one that is set is not adapted any more
_LARGE = 1 << 22  # bytes


def give_back() -> None:
    """Returns memory that the C library keeps after it was freed, often several times the memory in use.

    glibc keeps freed blocks for each thread that allocated them, and storage libraries read in many.
    Other C libraries have no such function, nor such a need.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def return_freed() -> None:
    """Makes the C library return large blocks to the system as soon as they are freed, in this process.

    For programs that read files and end: glibc would else keep freed blocks of up to 32 MiB, in each thread.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
