"""Variables and seeds of the losses and metrics that `compile` was given, which Keras has in no list."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.held import held_variables
from keras_flax_bridge.keras_internals.keys import untracked_entry, variables_within
from keras_flax_bridge.keras_internals.trainers import compiled_parts
from keras_flax_bridge.tree.paths import Path


class _Parts:
    """What `compile` was given, in attributes."""

    def __init__(self, model: Any):
        parts = compiled_parts(model)
        self.loss = parts.get("loss")
        self.metrics = parts.get("metrics")
        self.weighted_metrics = parts.get("weighted_metrics")
        self.learning_rate = getattr(model.optimizer, "_learning_rate", None)


def compiled_entries(model: Any, known: Container[int]) -> Iterator[Entry]:
    """The variables that the loss, the metrics and the learning rate schedule hold, but for known ones."""
    if not getattr(model, "compiled", False):
        return
    seen: set[int] = set()
    for path, variable in held_variables(_Parts(model), in_layer=variables_within):
        if id(variable) not in known and id(variable) not in seen:
            seen.add(id(variable))
            yield untracked_entry(_public(path), variable)


def _public(path: Path) -> Path:
    return tuple(name.lstrip("_") or name for name in path)
