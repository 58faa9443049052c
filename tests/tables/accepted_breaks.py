"""Breaks of the public API that were decided on since the last release; the next one empties the table."""

from typing import NamedTuple


class Accepted(NamedTuple):
    """A decision.

    Attributes:
        what: the name, as `tests/test_stability.py` prints it: ``kfb.restore(like)``.
        version: the one that has the break first.
        why: the reason, and what a program does in its place.
    """

    what: str
    version: str
    why: str


ACCEPTED: tuple[Accepted, ...] = ()
