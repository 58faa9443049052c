"""Initial values of layers, as pure functions of a key, and layers that have none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge.errors import StructureMismatchError, UnsupportedLayerError
from keras_flax_bridge.keras_internals import seeds
from keras_flax_bridge.keras_internals.config_scope import in_process_configs
from keras_flax_bridge.keras_internals.entries import SEED, Entry, variable_spec
from keras_flax_bridge.keras_internals.keys import collect_layer
from keras_flax_bridge.keras_internals.leftovers import forget_values
from keras_flax_bridge.keras_internals.models import build_layer
from keras_flax_bridge.keras_internals.recipes import cannot_rebuild, made_by, recipe_of
from keras_flax_bridge.keras_internals.valueless import Valueless, initializers
from keras_flax_bridge.keras_internals.values import holds_value
from keras_flax_bridge.tree.paths import Path, join_path


def initial_values(
    layer: Any, key: jax.Array, make: Callable[[], Any] | None = None, seeds_key: jax.Array | None = None
) -> dict[Path, Any]:
    """Initial values of all variables of a built layer as a pure function of a JAX key.

    Every initializer draws from a key of its own, made of `key` and the variable's path; also one
    that was given a fixed seed. A variable that the layer makes from a value starts with that value.

    Args:
        layer: the layer.
        key: a key of jax.
        make: makes such a layer; None builds it again from its config.
        seeds_key: a key for the seeds; None for `key`.

    Raises:
        UnsupportedLayerError: if the layer can't be built again from its config, or `make` gives another.
    """
    drawers = _drawers(layer, make)
    keys = {SEED: key if seeds_key is None else seeds_key}
    wanted = {e.path: keys.get(e.kind, key) for collection in collect_layer(layer) for e in collection}
    missing = ", ".join(join_path(path) for path in wanted if path not in drawers)
    if missing:
        raise cannot_rebuild(layer.name, type(layer), f"its copy lacks {missing}")
    return {path: drawers[path](seeds.fold(own, path)) for path, own in wanted.items()}


def _drawers(layer: Any, make: Callable[[], Any] | None) -> dict[Path, Callable[[jax.Array], Any]]:
    """For every variable, by path, a function that draws its initial value from a key."""
    made = Valueless()
    twin = made.run(lambda: _rebuilt(layer, make))
    entries = [entry for collection in collect_layer(twin) for entry in collection]
    starts = initializers(made, entries)
    return {entry.path: _drawer(entry, starts[id(entry.variable)]) for entry in entries}


def _drawer(entry: Entry, initializer: Any) -> Callable[[jax.Array], Any]:
    spec = variable_spec(entry.variable)
    if entry.kind == SEED:
        return seeds.seed
    own = copy.copy(initializer)

    def draw(key: jax.Array) -> Any:
        if hasattr(own, "seed"):
            own.seed = key
        return jnp.asarray(own(spec.shape, dtype=spec.dtype), spec.dtype)

    return draw


def made_without_values(make: Callable[[], Any]) -> Any:
    """The layer that a function makes, whose variables have no values.

    Raises:
        UnsupportedLayerError: if making it needs the values of weights.
        StructureMismatchError: if the function makes no layer, or one that existed before.
    """
    made = Valueless()
    with explaining_values("the function that makes the layer"):
        layer = made.run(make)
    if not isinstance(layer, keras.layers.Layer):
        raise StructureMismatchError(
            "layer",
            got=f"a function that returns a {type(layer).__name__}",
            expected="a Keras layer or model, or a function that makes one",
            fix="Return the layer from the function.",
        )
    require_new(layer, made, "Make it inside the function, or pass the layer itself.")
    forget_values(layer)
    return layer


def build_without_values(layer: Any, *args: Any, **kwargs: Any) -> None:
    """Builds what is not built of a layer that has no values, for such inputs."""
    Valueless().run(lambda: build_layer(layer, *args, **kwargs))
    forget_values(layer)


def require_new(layer: Any, made: Valueless, fix: str) -> None:
    """Checks that a function made a layer, or a model, anew.

    Raises:
        StructureMismatchError: if it has variables that hold values, and were not made by it.
    """
    parts = collect_layer(layer)
    if any(e.variable not in made and holds_value(e.variable) for part in parts for e in part):
        kind = "model" if isinstance(layer, keras.Model) else "layer"
        raise StructureMismatchError(
            f"{kind} {layer.name!r}",
            got=f"a {kind} that existed before and holds values",
            expected="one that the function builds",
            fix=fix,
        )


def _rebuilt(layer: Any, make: Callable[[], Any] | None) -> Any:
    """The layer built once more, from its config or by the function that makes it."""
    with in_process_configs() if make is None else contextlib.nullcontext():
        return made_by(recipe_of(layer, make))


@contextlib.contextmanager
def explaining_values(where: str) -> Iterator[None]:
    """Explains jax's error where code needs the values of weights that have none.

    Raises:
        UnsupportedLayerError: in place of jax's own error.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise UnsupportedLayerError(
            where,
            got=f"code that needs the values of weights ({type(error).__name__})",
            expected="layers that can be built without them",
            fix="Move that code out of it, or build with values: TrainState.from_keras(model_fn()), "
            "ToLinen(build()).",
        ) from error
