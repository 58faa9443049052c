"""What Keras knows of a callback's hooks, and how it hands logs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras.src.utils.python_utils import pythonify_logs


def overrides(callback: Any, hook: str) -> bool:
    """Whether calling a hook of a callback does anything.

    A class that answers for its attributes itself may give any hook at any time, so all of them count.
    """
    if "__getattribute__" in {name for base in type(callback).__mro__[:-1] for name in vars(base)}:
        return True
    names = (hook, hook.replace("_train_batch_", "_batch_"))  # the first calls the second, its older name
    return not all(_is_default(getattr(callback, name, None)) for name in names)


def _is_default(method: Any) -> bool:
    # `_is_default`: Keras marks the hooks of its own base class so, for a list to pass them over
    return bool(getattr(method, "_is_default", False))


def as_numbers(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Logs as callbacks get them: flat, with Python floats; this waits for the device."""
    numbers: dict[str, Any] = pythonify_logs(logs)
    return numbers
