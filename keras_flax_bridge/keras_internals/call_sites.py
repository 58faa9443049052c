"""Whose variable it is that traced code uses, and the line of the user's code that does."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import flax
import jax
import keras

from keras_flax_bridge.keras_internals.held import held_variables

_OWN = str(Path(__file__).parents[1])
_STEPS = str(Path(_OWN, "training")), str(Path(_OWN, "state", "apply_fn.py"))
_LIBRARIES = tuple(f"{Path(str(library.__file__)).parent}{os.sep}" for library in (keras, jax, flax))


def site_of(variable: Any) -> tuple[str, str]:
    """The owner of a variable, and the ``file:line`` that uses it, from the stack of calls.

    The owner is the object whose method is running and that holds the variable; otherwise the function of
    the user that uses it.
    """
    frames = list(_frames())
    users = [frame for frame in frames if not frame.f_code.co_filename.startswith(_LIBRARIES)]
    user = (users or frames)[0]
    owner = next((_named(own) for own in map(_self, frames) if _holds(own, variable)), None)
    return owner or _function(user), f"{user.f_code.co_filename}:{user.f_lineno}"


def _frames() -> Iterator[FrameType]:
    """The running calls between the use of the variable and the step, innermost first."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_code.co_filename.startswith(_STEPS):
        if not frame.f_code.co_filename.startswith(_OWN):
            yield frame
        frame = frame.f_back


def _self(frame: FrameType) -> Any:
    return frame.f_locals.get("self")


def _holds(owner: Any, variable: Any) -> bool:
    if owner is None or isinstance(owner, (keras.Variable, keras.random.SeedGenerator)):
        return False
    return any(item is variable for _, item in held_variables(owner))


def _named(owner: Any) -> str:
    name = getattr(owner, "name", None)
    return f"{type(owner).__name__} {name!r}" if isinstance(name, str) else type(owner).__name__


def _function(frame: FrameType) -> str:
    owner = _self(frame)
    return _named(owner) if owner is not None else f"{frame.f_code.co_qualname}()"
