"""What a layer computes, as a key: layers with equal keys compute the same from equal values.

The key is made of the layer's own objects, not of its config, which custom layers need not have. All that
a call can read is compared: classes, attributes, functions, arrays, the graph. What can't be compared stands
for itself, so that two layers that hold such a thing each are different.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.keys import has_auto_name


class Itself:
    """An object that equals no other one."""

    def __init__(self, value: Any):
        self.value = value  # held, so that its id stays its own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def architecture(layer: Any, entries: Iterable[Entry]) -> Hashable:
    """The key of a built layer, whose variables are operands of its calls.

    Args:
        layer: a Keras layer or model that makes no further variables.
        entries: its variables. Their values, and the names that Keras gave, are not part of the key.
    """
    entries = tuple(entries)
    variables = {id(entry.variable): number for number, entry in enumerate(entries)}
    kinds = tuple((e.path, e.kind, e.tracked, e.variable.shape, str(e.variable.dtype)) for e in entries)
    try:
        found = _Walk(variables).key(layer)
        hash(found)
    except RecursionError:  # objects nested hundreds deep
        found = Itself(layer)
    return kinds, found


class _Walk:
    """One pass over the objects of a layer, in which each object has the number of its first visit."""

    def __init__(self, variables: Mapping[int, int]):
        self.variables = variables
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id is used twice
        self.is_within = False  # a layer of Keras's own, which names its parts after itself

    def key(self, value: Any) -> Hashable:
        """What is compared of a value."""
        if type(value) in _NUMBERS:
            return type(value), repr(value)  # which tells 0.0 from -0.0
        if value is None or isinstance(value, _WHOLE):
            return type(value), value
        if type(value) is tuple:
            return tuple(map(self.key, value))
        if isinstance(value, keras.DTypePolicy):
            return type(value), self.attributes(value)
        if id(value) in self.numbers:
            return _Seen, self.numbers[id(value)]
        self.numbers[id(value)] = len(self.numbers)
        self.kept.append(value)
        return type(value), self.contents(value)

    def contents(self, value: Any) -> Hashable:
        """What is compared of an object that is met for the first time."""
        for kind, read in _KINDS.items():
            if isinstance(value, kind):
                return read(self, value)
        return self.attributes(value) if _is_plain(value) else Itself(value)

    def attributes(self, value: Any, skipped: frozenset[str] = frozenset()) -> Hashable:
        """The attributes of an object, by name."""
        held = vars(value)
        names = sorted(held.keys() - skipped)
        return tuple((n, self._initializer(value, n) or self.key(held[n])) for n in names)

    def _initializer(self, holder: Any, name: str) -> Hashable | None:
        """What is compared of the initializer of a weight: not the seed that its constructor drew."""
        held, stem = vars(holder), name.removesuffix("_initializer").lstrip("_")
        of_weight = name != stem and (_is_of_keras(holder) or bool({stem, f"_{stem}"} & held.keys()))
        if not of_weight or not isinstance(held[name], keras.Initializer):
            return None
        return type(held[name]), self.attributes(held[name], frozenset({"seed"}))


class _Seen:
    """Marks the number of an object that came before."""


class _Plain:
    """An object that is all in its attributes has the size of such a one."""


def _is_plain(value: Any) -> bool:
    return hasattr(value, "__dict__") and type(value).__basicsize__ == _Plain.__basicsize__


def _is_of_keras(value: Any) -> bool:
    return type(value).__module__.startswith("keras.")


_NUMBERS = {float, complex}
# immutable, and compared by their content or, as functions are, by what they are
_WHOLE: tuple[type, ...] = (
    bool,
    int,
    str,
    bytes,
    type,
    enum.Enum,
    np.dtype,
    types.EllipsisType,
    types.ModuleType,
)
_WHOLE += (types.FunctionType, types.BuiltinFunctionType)


# --- what is compared of each kind


def _variable(walk: _Walk, variable: Any) -> Hashable:
    number = walk.variables.get(id(variable))
    return Itself(variable) if number is None else number


def _seed_generator(walk: _Walk, generator: Any) -> Hashable:
    return walk.attributes(generator, frozenset({"name", "seed", "_initial_seed"}))  # its state is an operand


def _layer(walk: _Walk, layer: Any) -> Hashable:
    is_model, is_of_keras = isinstance(layer, keras.Model), _is_of_keras(layer)
    name = None if walk.is_within and is_of_keras else _own_name(layer)
    around, walk.is_within = walk.is_within, is_of_keras and not is_model
    found = walk.attributes(layer, _unread_of_models() if is_model else _unread())
    walk.is_within = around
    return name, found


def _operation(walk: _Walk, operation: Any) -> Hashable:
    return _own_name(operation), walk.attributes(operation, frozenset(vars(keras.Operation())))


def _metric(walk: _Walk, metric: Any) -> Hashable:
    loose = _Walk({id(variable): n for n, variable in enumerate(metric.variables)})  # no operands of a call
    return loose.attributes(metric, frozenset(vars(keras.Metric())))


def _tensor(walk: _Walk, tensor: Any) -> Hashable:
    return walk.attributes(tensor, frozenset({"name", "record_history", "_keras_history"}))


def _method(walk: _Walk, method: Any) -> Hashable:
    return walk.key(method.__func__), walk.key(method.__self__)


def _partial(walk: _Walk, partial: Any) -> Hashable:
    return walk.key(partial.func), walk.key(partial.args), walk.key(partial.keywords)


def _array(walk: _Walk, array: Any) -> Hashable:
    has_more = isinstance(array, np.ndarray) and type(array) is not np.ndarray  # such as a mask
    if has_more or array.dtype.hasobject:
        return Itself(array)
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _jax_array(walk: _Walk, array: Any) -> Hashable:
    is_readable = (
        not isinstance(array, jax.core.Tracer) and not array.is_deleted() and array.is_fully_addressable
    )
    if not is_readable or jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return Itself(array)
    return array.weak_type, array.sharding, _array(walk, np.asarray(array))


def _mapping(walk: _Walk, mapping: Any) -> Hashable:
    return tuple((walk.key(name), walk.key(value)) for name, value in mapping.items()), _beside(walk, mapping)


def _sequence(walk: _Walk, sequence: Any) -> Hashable:
    return tuple(map(walk.key, sequence)), _beside(walk, sequence)


def _set(walk: _Walk, values: Any) -> Hashable:
    # without an order: what has no content of its own to compare stays itself
    return frozenset(v if isinstance(v, _WHOLE) else Itself(v) for v in values), _beside(walk, values)


def _beside(walk: _Walk, container: Any) -> Hashable:
    """The attributes of a container of a class of its own; `tracker` is Keras's."""
    return walk.attributes(container, frozenset({"tracker"})) if hasattr(container, "__dict__") else ()


_KINDS: dict[Any, Callable[[_Walk, Any], Hashable]] = {
    keras.Variable: _variable,
    keras.random.SeedGenerator: _seed_generator,
    keras.layers.Layer: _layer,
    keras.Operation: _operation,
    keras.Metric: _metric,
    keras.KerasTensor: _tensor,
    types.SimpleNamespace: _Walk.attributes,
    types.MethodType: _method,
    functools.partial: _partial,
    np.ndarray: _array,
    np.generic: _array,
    jax.Array: _jax_array,
    dict: _mapping,
    list: _sequence,
    tuple: _sequence,
    set: _set,
    frozenset: _set,
}


# --- the attributes of every layer that say nothing of what it computes


def _own_name(named: Any) -> str | None:
    """A name that the user gave, which a call may read, for the keys of its outputs."""
    return None if has_auto_name(named) else named.name


@cache
def _unread() -> frozenset[str]:
    """Lists and functions that every layer has, and what building or calling it changes."""
    fresh = vars(keras.layers.Layer())
    settings = (bool, int, str, type(None))
    lists = {name for name, value in fresh.items() if not isinstance(value, settings)}
    changing = {"name", "_path", "_parent_path", "_called", "_lock", "_build_shapes_dict", "_auto_config"}
    return frozenset(lists - {"_dtype_policy", "_layers"} | changing)


@cache
def _unread_of_models() -> frozenset[str]:
    """What `compile` and `fit` left, and what the graph says once more, in names."""
    model = keras.Model()
    model.compile()
    graph = {"_nodes", "_operations", "_operations_by_depth", "output_names"}
    of_training = set(vars(model)) - set(vars(keras.layers.Layer()))
    return _unread().union(of_training, graph, {"history", "optimizer"})
