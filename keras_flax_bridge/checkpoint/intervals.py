"""When a save is due: every so many steps, or after so much time."""

from __future__ import annotations

import re
import time

import jax

from keras_flax_bridge.checkpoint.checks import is_count, require

_UNITS = {"s": 1, "min": 60, "h": 3600}
_FIX = "Pass save_every=100 for every 100 steps, or save_every='10min'."


def passes(every: int, before: int, step: int) -> bool:
    """Whether a multiple of a number is reached at a step, which comes after the step `before`.

    >>> passes(10, 9, 12), passes(10, 10, 12)
    (True, False)
    """
    return step // every > before // every


class Interval:
    """The rule of `save_every`.

    Args:
        every: a number of steps, or a time such as ``"10min"``.

    Raises:
        ArgumentError: if it is neither, or a time with several processes.

    Example:
        >>> Interval(10).is_due(9, 10), Interval("2h").is_due(9, 10)
        (True, False)
    """

    def __init__(self, every: int | str):
        self._seconds = _seconds(every) if isinstance(every, str) else None
        expected = "a whole number of steps, 1 or more, or a time such as '10min'"
        require(self._seconds is not None or is_count(every), "save_every", repr(every), expected, _FIX)
        alone = self._seconds is None or jax.process_count() == 1
        require(alone, "save_every", f"{every!r} with {jax.process_count()} processes", "steps", _FIX)
        self._steps = every if isinstance(every, int) else 1
        self._last = time.monotonic()

    def is_due(self, before: int, step: int) -> bool:
        """Whether a save is due at a step, which comes after the step `before`."""
        if self._seconds is not None:
            return time.monotonic() - self._last >= self._seconds
        return passes(self._steps, before, step) or step == 0

    def saved(self) -> None:
        """A save has begun."""
        self._last = time.monotonic()


def _seconds(text: str) -> float | None:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h)", text.strip())
    if found is None:
        return None
    number = float(found[1]) * _UNITS[found[2]]
    return number if number > 0 else None
