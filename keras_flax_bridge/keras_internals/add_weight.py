"""Weights of a layer at places of their own."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_flax_bridge.tree.paths import Path


def add_weight(layer: Any, place: Path, **options: Any) -> None:
    """Adds a weight whose path is the layer's and a place below it; for use in `build`.

    `Layer.add_weight` has all weights right below their layer.
    """
    *parents, name = (part.replace("/", "_") for part in place)
    with contextlib.ExitStack() as stack:
        for parent in parents:
            stack.enter_context(keras.name_scope(parent))
        variable = keras.Variable(name=name, aggregation="mean", **options)
    layer._track_variable(variable)  # what `add_weight` calls with its variable
