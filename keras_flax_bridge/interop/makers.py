"""Layers that a function makes, in place of a layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals.call import require_layer

Maker = Callable[[], Any]
# one layer for each function: copies of a module, which Linen makes for every call, share it
_LAYERS: weakref.WeakKeyDictionary[Maker, Any] = weakref.WeakKeyDictionary()


def maker_of(given: Any) -> Maker | None:
    """The function that makes the layer; None for a layer itself.

    Raises:
        StructureMismatchError: if `given` is neither.
    """
    if isinstance(given, keras.layers.Layer):
        return None
    if not callable(given) or isinstance(given, type):
        require_layer(given)
    make: Maker = given
    return make


def layer_of(given: Any) -> Any:
    """A layer, or the one that a function makes: once, and without values.

    Raises:
        StructureMismatchError: if `given` is neither, or the function makes no new layer.
        UnsupportedLayerError: if making it needs the values of weights.
    """
    make = maker_of(given)
    if make is None:
        require_layer(given)
        return given
    if make not in _LAYERS:
        _LAYERS[make] = keras_internals.made_without_values(make)
    return _LAYERS[make]
