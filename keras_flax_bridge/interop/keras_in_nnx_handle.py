"""The Keras layer of a `ToNNX`, as jax and pickle see it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.interop.makers import Maker
from keras_flax_bridge.keras_internals import Entry


class LayerHandle:
    """The Keras layer of a `ToNNX`; handles of layers that compute the same are equal: jit compiles once."""

    def __init__(
        self, layer: Any, entries: Sequence[Entry] = (), *, complete: bool = False, make: Maker | None = None
    ):
        self.layer = layer
        self.make = make  # what made the layer, without values
        self.entries = tuple(entries)
        self.complete = complete  # whether all sublayers are built, so that no call makes variables

    @cached_property
    def _key(self) -> _Key:
        """The one key of all such layers: jit compares it at every call."""
        if self.complete:
            found: Any = keras_internals.architecture(self.layer, self.entries)
        else:  # a call makes variables, with values of their own
            found = (id(self.layer), *((id(entry.variable), entry.kind) for entry in self.entries))
        return _KEYS.setdefault((self.complete, self.make is None, found), _Key())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, LayerHandle) and self._key is other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        entries = [(entry.path, entry.kind, entry.tracked) for entry in self.entries]
        layer = keras_internals.pickled(self.layer, self.make)
        return _unpickled, (layer, entries, self.complete, self.make)

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Builds what is not built of the layer, for such inputs."""
        own = self.make is None
        build = keras_internals.build_layer if own else keras_internals.build_without_values
        build(self.layer, *args, **kwargs)

    @cached_property
    def variables(self) -> frozenset[int]:
        """The ids of the variables that the module has."""
        return frozenset(id(entry.variable) for entry in self.entries)


class _Key:
    """Stands for what is compared of a layer; equal to itself alone."""


_KEYS: weakref.WeakValueDictionary[Hashable, _Key] = weakref.WeakValueDictionary()


def _unpickled(layer: Any, kept: Any, complete: bool, make: Maker | None) -> LayerHandle:
    variables = {
        entry.path: entry.variable for part in keras_internals.collect_layer(layer) for entry in part
    }
    entries = [Entry(path, variables[path], kind, tracked) for path, kind, tracked in kept]
    return LayerHandle(layer, entries, complete=complete, make=make)
