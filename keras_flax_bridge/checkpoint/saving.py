"""Writes a state into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata as packages
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx

from keras_flax_bridge.checkpoint import leaf_kinds, model_configs, orbax_io
from keras_flax_bridge.checkpoint.checks import is_packed, require
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.targets import target_of
from keras_flax_bridge.errors import StepAlreadyExistsError
from keras_flax_bridge.state.trees import without_unsaved
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.leaves import require_values
from keras_flax_bridge.tree.paths import Flat
from keras_flax_bridge.tree.types import Models, PathLike, PyTree


def checked(state: Any) -> tuple[Flat, dict[str, str]]:
    """The leaves of a state as they go to disk, and the implementations of typed keys by name.

    Each leaf is of a kind and a name that a restore gives back.
    """
    if isinstance(state, (nnx.Module, nnx.State)):
        flat = target_of(state).wanted  # by the names under which it is restored
    else:
        flat = leaf_kinds.flattened(without_unsaved(state))
    tree = () not in flat and not isinstance(state, keras.Model)
    fix = "Of a Keras model save TrainState.from_keras(model); put a single array into a dict."
    expected = "a TrainState, an nnx.Module, or a tree of arrays"
    require(tree, "state", f"a {type(state).__name__}", expected, fix)
    return leaf_kinds.to_disk(flat), leaf_kinds.key_kinds(flat)


def step_of(state: Any) -> int:
    """The number of a checkpoint, out of the state's own step."""
    step: Any = getattr(state, "step", None)
    fix = "Pass step=, or save it by itself: kfb.save(path, state)."
    require(step is not None, "state", f"a {type(state).__name__} without a step", "a TrainState", fix)
    require_values({("step",): step})
    whole = np.shape(step) == () and np.issubdtype(np.asarray(step).dtype, np.integer)
    fix = "The number of a checkpoint is the state's own step: put an int32 scalar there."
    require(whole, "state.step", spec_text(step), "a whole number", fix)
    return int(step)


def numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The scalars of logs; several values, as some metrics report them, can't rank a checkpoint."""
    scalars = {name: np.asarray(value) for name, value in (logs or {}).items()}
    return {name: float(v) for name, v in scalars.items() if v.shape == () and _is_real(v.dtype)}


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def state_metadata(state: Any, model: Any) -> Metadata:
    """The metadata of a checkpoint: versions, and the config of the model if it has one."""
    weights = getattr(type(state), "weight_map", None)  # of a module that kfb.migrate made
    mapped = None if weights is None else weights.to_json()
    return Metadata(versions=versions(), weight_map=mapped, **model_configs.of_state(state, model))


@cache
def versions() -> dict[str, str]:
    """The versions of the packages that write a checkpoint, by name."""
    return {name: packages.version(name) for name in ("keras", "jax", "flax", "orbax-checkpoint")}


@words.door
def save(path: PathLike, state: PyTree, *, model: Models | None = None, layout: str = "tree") -> None:
    """Saves one checkpoint, without a manager; returns when it is on disk.

    Args:
        path: the folder to write; it must not exist.
        state: a `TrainState`, an `nnx.Module`, or any pytree of arrays.
        model: the Keras model whose config is stored; None for the one that the
            state was taken from.
        layout: ``"tree"`` or ``"packed"``; see `CheckpointManager`.

    Raises:
        CheckpointError: if the folder exists or can't be written.
        OwnershipError: if a leaf was donated.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from keras_flax_bridge import restore
        >>> path = tempfile.mkdtemp() + "/weights"
        >>> save(path, {"a": jnp.arange(3)})
        >>> restore(path, {"a": jnp.zeros(3, int)})
        {'a': Array([0, 1, 2], dtype=int32)}
    """
    folder = orbax_io.absolute(path)
    if folder.exists():
        raise StepAlreadyExistsError(
            str(folder),
            got="a folder that exists",
            expected="a new one",
            fix="Use another path, or delete the existing one; nothing was written.",
        )
    packed = is_packed(layout)
    flat, keys = checked(state)
    orbax_io.save(folder, flat, None, replace(state_metadata(state, model), keys=keys), packed=packed)
