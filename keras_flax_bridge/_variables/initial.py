"""Pure initialisation, and models built without values."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras.src.backend.common import global_state

from keras_flax_bridge import _random
from keras_flax_bridge._paths import Path
from keras_flax_bridge._variables.entries import SEED, Entry, variable_spec
from keras_flax_bridge._variables.keys import collect_layer
from keras_flax_bridge._variables.models import collect
from keras_flax_bridge._variables.values import move
from keras_flax_bridge.errors import UnsupportedLayerError


def initial_values(layer: Any, key: jax.Array) -> dict[Path, Any]:
    """Initial values of all variables of a built layer as a pure function of a JAX key.

    Every initializer draws from a key of its own, made of `key` and the variable's path; also one
    that was given a fixed seed.

    Raises:
        UnsupportedLayerError: if the layer can't be built again from its config.
    """
    return {path: draw(_random.fold(key, path)) for path, draw in _initializers(layer).items()}


def _initializers(layer: Any) -> dict[Path, Callable[[jax.Array], Any]]:
    """For every variable, by path, a function that draws its initial value from a key."""
    with keras.StatelessScope(initialize_variables=False), _own_uninitialized():
        twin = _rebuilt(layer)
        entries = [entry for collection in collect_layer(twin) for entry in collection]
        return {entry.path: _drawer(entry) for entry in entries}


def _drawer(entry: Entry) -> Callable[[jax.Array], Any]:
    variable, spec = entry.variable, variable_spec(entry.variable)
    if entry.kind == SEED:
        return _random.seed
    # `_initializer`: kept only until the variable has its value
    initializer = copy.copy(variable._initializer)

    def draw(key: jax.Array) -> Any:
        if hasattr(initializer, "seed"):
            initializer.seed = key
        return jnp.asarray(initializer(spec.shape, dtype=spec.dtype), spec.dtype)

    return draw


def forget_traced(model: Any) -> None:
    """Rids a model that was built under a trace of what leaked from it.

    Its variables are emptied; arrays that a layer made while it was built are made again.

    Raises:
        UnsupportedLayerError: if a layer holds such an array and can't be built again from its config.
    """
    entries = [entry for collection in collect(model) for entry in collection]
    move([entry for entry in entries if _is_traced(entry.variable._value)])
    for layer in model._flatten_layers():
        leaked = [name for name, value in vars(layer).items() if _is_traced(value)]
        if leaked:
            with keras.StatelessScope(initialize_variables=False), _own_uninitialized():
                twin = _rebuilt(layer)
            vars(layer).update({name: vars(twin)[name] for name in leaked})


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _rebuilt(layer: Any) -> Any:
    """The layer built once more from its config; in a stateless scope, without values."""
    try:
        twin = type(layer).from_config(layer.get_config())
        if not twin.built:
            twin.build_from_config(layer.get_build_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}",
            got=f"a {type(layer).__name__} that can't be built again ({error})",
            expected="get_config() and get_build_config() that rebuild it",
            fix="Define them as Keras's guide on saving says, or take the layer's present values.",
        ) from error
    return twin


@contextlib.contextmanager
def _own_uninitialized() -> Iterator[None]:
    """Keeps variables that never get a value off Keras's global list of those that wait for one."""
    name = "uninitialized_variables"  # Keras would fill all that are on it at the next occasion
    before = list(global_state.get_global_attribute(name, []))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)
