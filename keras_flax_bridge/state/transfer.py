"""Moves values between a Keras model and a state without sharing buffers by accident."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import Collection, ModelVariables
from keras_flax_bridge.optimizers.step_interface import require_model, training_model
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.building import built, require_built_model
from keras_flax_bridge.tree.leaves import owned, placed_like, strong


def unaliased(tree: Any, other: Any) -> Any:
    """A tree that shares no buffer with another tree: both can be donated."""
    taken = {id(leaf) for leaf in jax.tree.leaves(other)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in taken else leaf, tree)


def take(variables: ModelVariables, copy: bool) -> list[list[Any]]:
    """The values of all variables: copies, or the buffers themselves, each once."""
    if copy:
        return [[owned(entry.variable.value) for entry in collection] for collection in variables]
    seen: set[int] = set()
    return [[_once(strong(e.variable.value), seen) for e in collection] for collection in variables]


def _once(value: Any, seen: set[int]) -> Any:
    """A buffer that two variables share is copied for the second: none can be donated twice."""
    if id(value) in seen:
        return jnp.copy(value)
    seen.add(id(value))
    return value


def zeroed(model: Any, metrics: Collection, tree: Any) -> Any:
    """Metric values after a reset."""
    if not metrics:
        return {}
    before = metrics.leaves(tree, "metrics")
    after = keras_internals.reset_metrics(model, before)
    return metrics.tree([placed_like(owned(new), old) for new, old in zip(after, before, strict=True)])


def receivers(model: Any, *, optimizer: Any = None, metrics: Any = None) -> dict[str, Collection]:
    """The variables of a model that a state can be written to, by the name of the state's tree.

    A layer, and an uncompiled model without a given optimizer, have weights only. Metrics that were
    compiled and have not seen data yet have no variables: they are skipped, and start at zero.
    """
    if not isinstance(model, keras.layers.Layer):
        require_model(model)
    if not getattr(model, "compiled", False) and optimizer is None:
        require_built_model(model)
        return dict(zip(trees.WEIGHTS, keras_internals.collect_layer(model), strict=True))
    trained = built(training_model(model, optimizer=optimizer, metrics=metrics), None)
    if metrics is not None or keras_internals.metrics_built(trained):
        return keras_internals.collect(trained)._asdict()
    found = keras_internals.collect(trained, metrics=False)._asdict()
    return {tree: collection for tree, collection in found.items() if tree != "metrics"}
