"""An optimizer built once more for the leaves of a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from keras_flax_bridge import _paths
from keras_flax_bridge._variables.decisions import copy_exclusions, learning_rate
from keras_flax_bridge._variables.entries import PARAM, Collection, Entry
from keras_flax_bridge._variables.slots import optimizer_entries


class Twin(NamedTuple):
    """An optimizer of the same config as another, with the variables it was built for and its own."""

    optimizer: Any
    params: Collection
    slots: Collection


def twin_of(optimizer: Any, values: _paths.Flat, owner: Callable[[_paths.Path], Any]) -> Twin:
    """The optimizer rebuilt from its config, for variables of these values.

    Args:
        optimizer: a Keras optimizer; it stays as it is.
        values: arrays by path.
        owner: the variable whose name, path and constraint one of a path has; None for none.
    """
    fresh = _rebuilt(optimizer)
    params = Collection(Entry(path, _variable(path, v, owner(path)), PARAM) for path, v in values.items())
    with keras.name_scope(fresh.name, caller=fresh):
        fresh.build([entry.variable for entry in params])
    keys: Mapping[int, _paths.Path] = {id(entry.variable): entry.path for entry in params}
    return Twin(fresh, params, Collection(optimizer_entries(fresh, keys)))


def _rebuilt(optimizer: Any) -> Any:
    config = optimizer.get_config()
    rate = learning_rate(optimizer)
    if not isinstance(rate, keras.Variable):
        config["learning_rate"] = rate  # as an object, so that its class needs no registration
    fresh = type(optimizer).from_config(config)
    for old, new in zip(_parts(optimizer), _parts(fresh), strict=True):
        copy_exclusions(old, new)
    return fresh


def _parts(optimizer: Any) -> list[Any]:
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return [optimizer, *_parts(inner)]
    return [optimizer, *getattr(optimizer, "optimizers", ())]


def _variable(path: _paths.Path, value: Any, owner: Any) -> Any:
    name = (path[-1] if path else "param").replace("/", "_")
    variable = keras.Variable(
        value, dtype=str(value.dtype), trainable=True, name=owner.name if owner is not None else name
    )
    # `_path`: the public one is made when a variable is, and can't be set
    variable._path = owner.path if owner is not None else "/".join(path) or name
    variable.constraint = owner.constraint if owner is not None else None
    return variable
