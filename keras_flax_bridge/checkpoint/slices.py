"""Arrays in parts, in C order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

GROUP = 1 << 24  # bytes of small arrays that are read together
PART = 1 << 22  # bytes of one part of a larger one


def slices(shape: tuple[int, ...], most: int, step: int = 1) -> Iterator[tuple[slice, ...]]:
    """Indices of the parts of an array, in C order; together they are the array.

    Args:
        shape: of the array.
        most: elements of one part.
        step: where it can be, a part has a multiple of this many rows.

    >>> list(slices((3, 4), 8))
    [(slice(0, 2, None),), (slice(2, 3, None),)]
    >>> list(slices((2, 4), 3))[:2]
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 4, None))]
    """
    if not shape or math.prod(shape) <= most:
        yield ()
        return
    row = math.prod(shape[1:])
    if row > most:
        for i in range(shape[0]):
            yield from ((slice(i, i + 1), *rest) for rest in slices(shape[1:], most))
        return
    rows = max(1, most // max(row, 1))
    rows = rows // step * step or rows
    for i in range(0, shape[0], rows):
        yield (slice(i, min(i + rows, shape[0])),)


def flat_pieces(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Parts in C order as one-dimensional arrays; none is kept while the next one is read."""
    for piece in pieces:
        flat = np.ascontiguousarray(piece).reshape(-1)
        del piece
        yield flat
        del flat


def together(
    first: Iterator[np.ndarray], second: Iterator[np.ndarray], most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Corresponding parts of two arrays that are read in pieces of any size; limited in length."""
    a: Any = np.empty(0)
    b: Any = np.empty(0)
    while True:
        if not a.size:
            a = None  # releases a piece before the next is read
            a = _next(first)
        if not b.size:
            b = None
            b = _next(second)
        if a is None or b is None:
            return
        size = min(a.size, b.size, most)
        yield a[:size], b[:size]
        a, b = a[size:], b[size:]


def _next(pieces: Iterator[np.ndarray]) -> Any:
    """The next piece that is not empty; None at the end."""
    return next((piece for piece in pieces if piece.size), None)
