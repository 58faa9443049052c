"""What Keras casts in a call of a layer whose policy is mixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common.variables import AutocastScope, get_autocast_scope


@contextlib.contextmanager
def autocast(layer: Any) -> Iterator[None]:
    """Inside, the values of float variables are cast as Keras casts them in a call of the layer."""
    # `AutocastScope`: Keras enters it in `Layer.__call__` alone, not in `compute_output_spec`
    outer = get_autocast_scope()
    casts = layer.autocast and keras.backend.is_float_dtype(layer.compute_dtype)
    if outer is None and layer.compute_dtype == layer.variable_dtype:
        yield
        return
    with AutocastScope(layer.compute_dtype if casts else None):
        yield


def autocasted(value: Any) -> Any:
    """A value as a variable that is autocast gives it here."""
    scope = get_autocast_scope()
    return value if scope is None else scope.maybe_cast(value)
