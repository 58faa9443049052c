"""Which callback ended a run, so that it stays ended when the script is run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np


def ended_by(stopped: bool, callbacks: Iterable[Any], logs: Mapping[str, Any]) -> str | None:
    """The class of the callback that ended a run for good; None if none did.

    A run that another callback stopped, at a time limit say, is left to be resumed.

    Args:
        stopped: whether a callback stopped it.
        callbacks: all of them.
        logs: the last ones.
    """
    if not stopped:
        return None
    return next((type(one).__name__ for one in callbacks if _has_ended(one, logs)), None)


def _has_ended(callback: Any, logs: Mapping[str, Any]) -> bool:
    if isinstance(callback, keras.callbacks.EarlyStopping):
        return bool(callback.stopped_epoch)
    return isinstance(callback, keras.callbacks.TerminateOnNaN) and not np.isfinite(logs.get("loss", 0.0))
