"""Weights of a layer at nested paths."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_flax_bridge.tree.paths import Path


def add_weight(layer: Any, place: Path, *, overwritten: bool = False, **options: Any) -> None:
    """Adds a weight at a path below the layer; for use in `build`.

    `Layer.add_weight` places all weights directly below their layer. With `overwritten`, gradients are
    its next values.
    """
    *parents, name = (part.replace("/", "_") for part in place)
    with contextlib.ExitStack() as stack:
        for parent in parents:
            stack.enter_context(keras.name_scope(parent))
        variable = keras.Variable(name=name, aggregation="mean", **options)
    if overwritten:
        variable.overwrite_with_gradient = True
    layer._track_variable(variable)  # what `add_weight` calls with its variable
