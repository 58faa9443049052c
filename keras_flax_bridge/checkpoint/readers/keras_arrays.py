"""The arrays in Keras's own files, and the config beside them, without loading the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import guards, model_configs
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree


def datasets(path: FilePath) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays in a file, by Keras's own paths in it; no array is read."""
    with guards.weights(path) as weights:
        return specs_of(weights.arrays)


def specs_of(arrays: Mapping[str, guards.Array]) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes by path, in the order of Keras's numbers."""
    found = {
        tuple(name.split("/")): jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in arrays.items()
    }
    # numbers sort before names, so that mixed names can be compared
    order = lambda path: [(0, int(n), "") if n.isdecimal() else (1, 0, n) for n in path]  # noqa: E731
    return {path: found[path] for path in sorted(found, key=order)}


def abstract(path: FilePath, config: dict[str, Any]) -> tuple[Flat, dict[Path, str]]:
    """The abstract leaves of a `.keras` file by structural key, and their names in it; allocates nothing.

    Raises:
        BridgeError: if the model can't be built here.
    """
    optimizer = None if config.get("compile_config") else "sgd"
    state = TrainState.abstract(lambda: model_configs.build(config, path), optimizer=optimizer)
    return flatten_tree(state), names(models_of(state.apply_fn).get(""))


def names(model: Any) -> dict[Path, str]:
    """The names in the file; empty if a custom layer saves its variables in its own way."""
    try:
        return {} if model is None else keras_internals.names_in_files(model)
    except Exception:  # of a user's save_own_variables, which finds no values
        return {}
