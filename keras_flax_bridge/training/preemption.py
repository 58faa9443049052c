"""Detects SIGTERM, to this process or to any of several, and SIGUSR1, which asks for a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import jax

_calls = count(1)  # jax needs consecutive numbers, equal in all processes, each used once
# SIGUSR1 is not on every system
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preemption:
    """Watches for SIGTERM and SIGUSR1 between `begin` and `end`, or inside a ``with`` block.

    Under `jax.distributed` jax handles the signal, and all processes are notified at the same step.
    Without, only the main thread of a process gets signals: elsewhere nothing is noticed. SIGUSR1 is
    watched in a single process only: of several, not all would save.

    Args:
        is_on: whether what is watched still runs, told by the frame in which a signal comes. It is for who
            can't know that an exception ended it; then the signal does what it did before.
    """

    def __init__(self, is_on: Callable[[Any], bool] = lambda frame: True) -> None:
        self._is_on = is_on
        self._came = False
        self._asked: int | None = None
        self._save_asked = False
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Installs the signal handler, in the main thread of a single process."""
        self._came, self._asked, self._save_asked = False, None, False
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._notice) or signal.SIG_DFL

    def end(self) -> None:
        """Restores the previous signal handlers."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def came(self, step: int) -> bool:
        """Whether to stop after this step; under `jax.distributed` all processes must ask at every step."""
        if jax.distributed.is_initialized() and not self._came and step != self._asked:
            from jax.experimental import multihost_utils

            self._asked = step
            self._came = multihost_utils.reached_preemption_sync_point(next(_calls))
        return self._came

    def save_asked(self) -> bool:
        """Whether a SIGUSR1 came since the last call."""
        asked, self._save_asked = self._save_asked, False
        return asked

    def _notice(self, number: int, frame: Any) -> None:
        if self._is_on(frame):
            self._came |= number == signal.SIGTERM
            self._save_asked |= number != signal.SIGTERM
        else:
            self.end()
            signal.raise_signal(number)

    def __enter__(self) -> Preemption:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
