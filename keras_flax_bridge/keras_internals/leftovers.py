"""What a model that was built without values keeps of them: arrays that were computed from its weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

import jax
import keras

from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.held import attributes, may_hold
from keras_flax_bridge.keras_internals.models import all_layers, collect
from keras_flax_bridge.keras_internals.trainers import metrics_built
from keras_flax_bridge.keras_internals.values import move


def forget_values(model: Any) -> None:
    """Empties a layer that was built without values: its variables, and what was computed from them.

    Variables raise `OwnershipError` until they are assigned. Arrays that depend on weights, in attributes,
    containers, objects and closures of layers, become their shapes and dtypes, which jax refuses.
    """
    move(_entries(model))
    for layer in all_layers(model):
        _Forgetting().within(layer)


def _entries(model: Any) -> list[Entry]:
    metrics = getattr(model, "compiled", False) and metrics_built(model)
    return [entry for collection in collect(model, metrics=metrics) for entry in collection]


class _Forgetting:
    """One walk through what an object holds."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def within(self, owner: Any) -> None:
        """Replaces arrays without values in an object that is no array itself."""
        if id(owner) in self._seen:
            return
        self._seen.add(id(owner))
        for name, value, put in _places(owner):
            new = self._instead(value)
            if new is not value:
                put(name, new)

    def _instead(self, value: Any) -> Any:
        """A value, or what stands in its place."""
        if isinstance(value, jax.core.Tracer):
            return jax.ShapeDtypeStruct(value.shape, value.dtype)
        if isinstance(value, tuple) and type(value) is tuple:
            items = tuple(self._instead(item) for item in value)
            return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
        if not isinstance(value, keras.Variable | keras.layers.Layer) and _is_looked_into(value):
            self.within(value)
        return value


def _is_looked_into(value: Any) -> bool:
    containers = (list, dict, tuple, FunctionType, MethodType, functools.partial)
    return isinstance(value, containers) or may_hold(value.__class__)


def _places(owner: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Names, values and a function that puts another value in their place."""
    if isinstance(owner, dict):
        yield from ((name, value, owner.__setitem__) for name, value in list(owner.items()))
    elif isinstance(owner, list):
        yield from ((index, value, owner.__setitem__) for index, value in enumerate(list(owner)))
    elif isinstance(owner, tuple):  # a named one: its items may be containers
        yield from ((name, item, _nothing) for name, item in enumerate(owner))
    elif isinstance(owner, MethodType):
        yield "self", owner.__self__, _nothing
    elif isinstance(owner, functools.partial):
        yield from ((n, v, _nothing) for n, v in enumerate((owner.func, list(owner.args), owner.keywords)))
    elif isinstance(owner, FunctionType):
        for cell in owner.__closure__ or ():
            yield from _content(cell)
    else:
        found: Any = attributes(owner)
        yield from ((name, value, found.__setitem__) for name, value in list(found.items()))


def _content(cell: CellType) -> Iterator[tuple[Any, Any, Any]]:
    def put(_: Any, value: Any) -> None:
        cell.cell_contents = value

    try:
        yield None, cell.cell_contents, put
    except ValueError:  # of a name that has no value yet
        return


def _nothing(name: Any, value: Any) -> None:
    """What can't be changed keeps what it has; jax names the array where it is used."""
