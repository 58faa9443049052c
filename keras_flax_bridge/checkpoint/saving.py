"""Writes a state into a folder."""

from __future__ import annotations

import json
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
from keras_flax_bridge.checkpoint.assets import Assets
from keras_flax_bridge.checkpoint.checks import is_packed, require
from keras_flax_bridge.checkpoint.data_positions import is_json
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.targets import root_of, target_of
from keras_flax_bridge.errors import CheckpointError, StepAlreadyExistsError
from keras_flax_bridge.state.trees import without_unsaved
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.leaves import require_values
from keras_flax_bridge.tree.logs import flat_logs
from keras_flax_bridge.tree.nodes import value_of
from keras_flax_bridge.tree.paths import Flat
from keras_flax_bridge.tree.types import Models, PathLike, PyTree
from keras_flax_bridge.tree.untrusted import texts


def checked(state: Any) -> tuple[Flat, dict[str, str]]:
    """The leaves of a state as they go to disk, and the implementations of typed keys by name.

    Each leaf is of a kind and a name that a restore gives back.
    """
    if hasattr(type(state), "weight_map"):
        flat = target_of(state).wanted  # by the names of Keras
    else:
        flat = leaf_kinds.flattened(without_unsaved(state), root_of(state))
    tree = () not in flat and not isinstance(state, keras.Model)
    fix = "Of a Keras model save TrainState.from_keras(model); put a single array into a dict."
    expected = "a TrainState, an nnx.Module, or a tree of arrays"
    require(tree, "state", f"a {type(state).__name__}", expected, fix)
    return leaf_kinds.to_disk(flat), leaf_kinds.key_kinds(flat)


def step_of(state: Any, given: int | None = None) -> int:
    """The number of a checkpoint: the state's own step, or the given one where it has none."""
    step = _own_step(state)
    if step is None and isinstance(state, (Mapping, list, tuple)):
        found = [_own_step(part) for part in (state.values() if isinstance(state, Mapping) else state)]
        steps = [one for one in found if one is not None]
        step = steps[0] if len(steps) == 1 else None
    is_number = given is None or (type(given) is int and given >= 0)
    require(is_number, "step", repr(given), "a whole number, 0 or more", "Leave step= out, or pass an int.")
    fix = "Pass step=, or save it by itself: kfb.save(path, state)."
    if step is None and given is not None:
        return given
    require(step is not None, "state", f"a {type(state).__name__} without a step", "a TrainState", fix)
    number = _checked_step(step)
    fix = "Leave step= out: it is for what has no step."
    require(given in (None, number), "step", repr(given), f"{number}, the state's own step", fix)
    return number


def _own_step(state: Any) -> Any:
    """What a state, an optimizer, or a dict has as its step; None if it has none."""
    step = state.get("step") if isinstance(state, Mapping) else getattr(state, "step", None)
    step = value_of(step) if isinstance(step, nnx.Variable) else step
    return None if callable(step) else step


def _checked_step(step: Any) -> int:
    require_values({("step",): step})
    whole = np.shape(step) == () and np.issubdtype(np.asarray(step).dtype, np.integer)
    fix = "The number of a checkpoint is the state's own step: put an int32 scalar there."
    require(whole, "state.step", spec_text(step), "a whole number", fix)
    return int(step)


def numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The scalars of logs; several values, as some metrics report them, can't rank a checkpoint."""
    scalars = {name: np.asarray(value) for name, value in flat_logs(logs or {}).items()}
    return {name: float(v) for name, v in scalars.items() if v.shape == () and _is_real(v.dtype)}


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def note(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the user stores beside a checkpoint, as JSON types."""
    if metadata is None:
        return None
    named = isinstance(metadata, Mapping) and all(isinstance(name, str) for name in metadata)
    plain = dict(metadata) if named else {}
    fix = "Write arrays and tuples as lists, and numbers of numpy as Python's."
    expected = "a dict of JSON types: lists, dicts with names, texts, numbers, bools, None"
    kind = " of what JSON does not preserve" if isinstance(metadata, Mapping) else ""
    got = f"a {type(metadata).__name__}{kind}"
    require(named and is_json(plain), "metadata", got, expected, fix)
    texts.parsed(json.dumps(plain), "metadata", CheckpointError)  # within the bounds of what is read
    return plain


def state_metadata(state: Any, model: Any) -> tuple[Metadata, Assets]:
    """The metadata of a checkpoint, versions and the config of the model if it has one; and its assets."""
    weights = getattr(type(state), "weight_map", None)  # of a module that kfb.migrate made
    mapped = None if weights is None else weights.to_json()
    described, assets = model_configs.of_state(state, model)
    return Metadata(versions=versions(), weight_map=mapped, **described), assets


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
        model: the Keras model whose config and assets, such as vocabularies, are stored; None for the one
            that the state was taken from.
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
    metadata, assets = state_metadata(state, model)
    orbax_io.save(folder, flat, None, replace(metadata, keys=keys), packed=packed, assets=assets)
