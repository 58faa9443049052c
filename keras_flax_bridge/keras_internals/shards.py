"""Calls inside of `jax.shard_map`, where each weight is the shard of one device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from jax.sharding import get_abstract_mesh

from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.models import all_layers


@contextlib.contextmanager
def scope_of(layer: Any, entries: Sequence[Entry], values: Sequence[Any]) -> Iterator[Any]:
    """Keras's scope in which the variables of a layer have given values, shards inside of `jax.shard_map`.

    Raises:
        ValueError: Keras's own, if a value is not of its variable's shape, and no shard.
    """
    pairs = [(entry.variable, value) for entry, value in zip(entries, values, strict=True)]
    shards = {id(variable) for variable, value in pairs if tuple(value.shape) != tuple(variable.shape)}
    if not shards or not get_abstract_mesh().manual_axes:
        with keras.StatelessScope(pairs, collect_losses=True) as scope:
            yield scope
        return
    whole = [pair for pair in pairs if id(pair[0]) not in shards]
    with _of_any_size(layer), keras.StatelessScope(whole, collect_losses=True) as scope:
        for variable, value in pairs:
            if id(variable) in shards:
                scope.add_update((variable, value))  # which, unlike the mapping, takes any shape
        yield scope


@contextlib.contextmanager
def _of_any_size(layer: Any) -> Iterator[None]:
    """Takes away the checks of input shapes, which know the size of the whole."""
    kept = [(part, part.input_spec) for part in all_layers(layer) if part.input_spec is not None]
    added = []  # by models that compute theirs, and remember one that is set
    try:
        for part, _ in kept:
            before = set(vars(part))
            part.input_spec = None
            added += [(part, name) for name in vars(part).keys() - before]
        yield
    finally:
        for part, spec in kept:
            part.input_spec = spec
        for part, name in added:
            delattr(part, name)
