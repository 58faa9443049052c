"""Variables and seeds that plain Python objects hold, which Keras does not look into."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import keras

from keras_flax_bridge.tree.paths import Path

# objects of libraries hold no variables of Keras, and what Keras's own objects hold is known
_LIBRARIES = frozenset(
    {"builtins", "collections", "flax", "functools", "grain", "h5py", "jax", "jaxlib", "keras"}
    | {"keras_flax_bridge", "ml_dtypes"}
    | {"numpy", "optax", "orbax", "pandas", "PIL", "scipy", "sklearn", "tensorflow", "tokenizers", "torch"}
    | {"types", "weakref"}
)
PLAIN = frozenset({str, bytes, int, float, bool, type(None)})  # of a vocabulary there may be a million
_SEEDS = keras.random.SeedGenerator
_HOLDERS = (keras.Variable, _SEEDS, keras.layers.Layer, Mapping, list, tuple, functools.partial)
InLayer = Callable[[Any], Iterable[tuple[Path, Any]]]  # the variables of a layer, with paths


def held_variables(
    owner: Any, skip: Container[str] = (), in_layer: InLayer | None = None
) -> Iterator[tuple[Path, Any]]:
    """The variables in the attributes of an object, in containers and in plain objects there, with paths.

    Args:
        owner: the object; of a function, the variables of its closure are looked into.
        skip: names of attributes that are left out.
        in_layer: gives the variables of a layer that a plain object holds; None to leave layers out.
    """
    seen, own = {id(owner)}, attributes(owner)
    for name in sorted(n for n, value in own.items() if may_hold(value.__class__) and n not in skip):
        yield from _within((name,), own[name], seen, in_layer)


@functools.cache
def may_hold(kind: Any) -> bool:
    """Whether objects of a class are looked into."""
    if issubclass(kind, (*_HOLDERS, FunctionType, MethodType)):
        return True
    plain = kind.__module__.partition(".")[0] not in _LIBRARIES
    return plain and not issubclass(kind, (keras.optimizers.Optimizer, type))


def attributes(owner: Any) -> Mapping[str, Any]:
    """The attributes of an object; those of a function are the variables of its closure."""
    if isinstance(owner, FunctionType):
        cells = owner.__closure__ or ()
        return {n: _content(c) for n, c in zip(owner.__code__.co_freevars, cells, strict=True)}
    return getattr(owner, "__dict__", {})


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return None


def _within(path: Path, value: Any, seen: set[int], in_layer: InLayer | None) -> Iterator[tuple[Path, Any]]:
    if not may_hold(value.__class__) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, keras.Variable):
        yield path, value
    elif isinstance(value, _SEEDS):
        yield (*path, value.state.name), value.state
    elif isinstance(value, keras.layers.Layer):
        yield from (((*path, *place), v) for place, v in (in_layer(value) if in_layer else ()))
    else:
        if isinstance(value, keras.Metric):  # what a metric lists is in its own tree
            seen.update(id(variable) for variable in value.variables)
        for name, item in _items(value):
            if item.__class__ in PLAIN:
                continue
            yield from _within((*path, str(name)), item, seen, in_layer)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if isinstance(value, MethodType):
        return [("self", value.__self__)]
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    return sorted(attributes(value).items())
