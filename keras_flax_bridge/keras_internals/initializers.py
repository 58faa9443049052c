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

from keras_flax_bridge.errors import UnsupportedLayerError, said
from keras_flax_bridge.keras_internals import seeds
from keras_flax_bridge.keras_internals.bounds import Made, variables_made_by
from keras_flax_bridge.keras_internals.config_scope import in_process_configs
from keras_flax_bridge.keras_internals.entries import SEED, Entry, variable_spec
from keras_flax_bridge.keras_internals.keys import collect_state
from keras_flax_bridge.keras_internals.models import (
    all_layers,
    build_layer,
    collect,
    is_complete,
    shapes_to_specs,
)
from keras_flax_bridge.keras_internals.values import move
from keras_flax_bridge.tree.paths import Path, join_path


def initial_values(layer: Any, key: jax.Array) -> dict[Path, Any]:
    """Initial values of all variables of a built layer as a pure function of a JAX key.

    Every initializer draws from a key of its own, made of `key` and the variable's path; also one
    that was given a fixed seed. A variable that the layer makes from a value starts with that value.

    Raises:
        UnsupportedLayerError: if the layer can't be built again from its config.
    """
    initializers = _initializers(layer)
    wanted = [entry.path for collection in collect_state(layer) for entry in collection]
    missing = ", ".join(join_path(path) for path in wanted if path not in initializers)
    if missing:
        raise _cannot_rebuild(layer, f"its copy lacks {missing}")
    return {path: initializers[path](seeds.fold(key, path)) for path in wanted}


def _initializers(layer: Any) -> dict[Path, Callable[[jax.Array], Any]]:
    """For every variable, by path, a function that draws its initial value from a key."""
    with _without_values():
        twin = _rebuilt(layer)
        entries = [entry for collection in collect_state(twin) for entry in collection]
        return {entry.path: _drawer(entry) for entry in entries}


def _drawer(entry: Entry) -> Callable[[jax.Array], Any]:
    variable, spec = entry.variable, variable_spec(entry.variable)
    if entry.kind == SEED:
        return seeds.seed
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
    for layer in all_layers(model):
        leaked = [name for name, value in vars(layer).items() if _is_traced(value)]
        if leaked:
            with _without_values():
                twin = _rebuilt(layer)
            vars(layer).update({name: vars(twin)[name] for name in leaked})


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _rebuilt(layer: Any) -> Any:
    """The layer built once more from its config; in a stateless scope, without values."""
    classes = {type(part) for part in all_layers(layer)}
    # registered or not; Keras's own would hide its operations of the same names, such as Add
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    try:
        with keras.saving.custom_object_scope(own), in_process_configs():
            twin = type(layer).from_config(layer.get_config())
        if not is_complete(twin):
            _build_as(twin, layer)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _cannot_rebuild(layer, said(error)) from error
    return twin


def _build_as(twin: Any, layer: Any) -> None:
    # `_is_default`: Keras's mark of a `build` that nobody wrote; it builds no sublayer
    if not getattr(type(layer).build, "_is_default", False):
        twin.build_from_config(layer.get_build_config())
    # `_build_shapes_dict`: the shapes that the layer was built for; its config loses their names
    shapes = {k: shape for k, shape in (layer._build_shapes_dict or {}).items() if shape is not None}
    specs = {name.removesuffix("_shape"): shapes_to_specs(twin, shape) for name, shape in shapes.items()}
    if specs and not is_complete(twin):
        first = next(iter(specs))
        build_layer(twin, specs.pop(first), **specs)


def _cannot_rebuild(layer: Any, reason: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"layer {layer.name!r}",
        got=f"a {type(layer).__name__} that can't be rebuilt ({reason})",
        expected="get_config() and get_build_config() that rebuild it",
        fix="Define them as described in Keras's guide on serialization, or use the layer's current values.",
    )


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Inside, layers are built and no initializer runs."""
    with (
        keras.StatelessScope(initialize_variables=False),
        _own_uninitialized(),
        _values_as_initializers(),
    ):
        yield


class _Given:
    """The initializer of a variable that was made from a value."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return jnp.asarray(self.value, dtype)


@contextlib.contextmanager
def _values_as_initializers() -> Iterator[None]:
    """Lets this thread make variables from values, as stateful RNNs do: a stateless scope refuses them."""

    def make(plain: Made, variable: Any, initializer: Any, shape: Any, dtype: Any, options: Any) -> None:
        if not callable(initializer) and not isinstance(initializer, str):
            value = keras.ops.convert_to_tensor(initializer, dtype=dtype)
            initializer, shape, dtype = _Given(value), value.shape, dtype or value.dtype
        plain(variable, initializer, shape=shape, dtype=dtype, **options)

    with variables_made_by(make):
        yield


@contextlib.contextmanager
def _own_uninitialized() -> Iterator[None]:
    """Keeps variables that never get a value off Keras's global list of uninitialized variables."""
    name = "uninitialized_variables"  # Keras would fill all that are on it at the next occasion
    before = list(global_state.get_global_attribute(name, []))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)
