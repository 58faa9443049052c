"""What is checked and gathered before a checkpoint is written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata as packages
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx

from keras_flax_bridge import _configs, _kinds, _restore
from keras_flax_bridge._orbax import FilePath
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.leaves import require_values
from keras_flax_bridge.tree.paths import Flat

_FORMAT = 1


def checked(state: Any) -> Flat:
    """The leaves of a state as they go to disk, each of a kind and a name that a restore gives back."""
    if isinstance(state, (nnx.Module, nnx.State)):
        flat = _restore.target_of(state).wanted  # by the names under which it is restored
    else:
        flat = _kinds.flattened(state)
    tree = () not in flat and not isinstance(state, keras.Model)
    require(tree, "state", f"a {type(state).__name__}", "a TrainState, an nnx.Module, or a tree of arrays")
    return _kinds.to_disk(flat)


def step_of(state: Any) -> int:
    """The number of a checkpoint, out of the state's own step."""
    step: Any = getattr(state, "step", None)
    require(step is not None, "state", f"a {type(state).__name__} without a step", "a TrainState")
    require_values({("step",): step})
    whole = np.shape(step) == () and np.issubdtype(np.asarray(step).dtype, np.integer)
    require(whole, "state.step", spec_text(step), "a whole number")
    return int(step)


def numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The scalars of logs; several values, as some metrics report them, can't rank a checkpoint."""
    scalars = {name: np.asarray(value) for name, value in (logs or {}).items()}
    return {name: float(v) for name, v in scalars.items() if v.shape == () and _is_real(v.dtype)}


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))


def is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def metadata(state: Any, model: Any) -> dict[str, Any]:
    """What lies beside the leaves: versions, and the config of the model where it has one."""
    weights = getattr(type(state), "weight_map", None)  # of a module that kfb.migrate made
    mapped = {} if weights is None else {"weight_map": weights.to_json()}
    return {"format": _FORMAT, "versions": _versions(), **mapped, **_configs.of_state(state, model)}


@cache
def _versions() -> dict[str, str]:
    return {name: packages.version(name) for name in ("keras", "jax", "flax", "orbax-checkpoint")}


def best_rule(keep_best: str | tuple[str, str]) -> tuple[str, str]:
    if not isinstance(keep_best, str):
        pair = isinstance(keep_best, (tuple, list)) and len(keep_best) == 2
        require(pair, "keep_best", repr(keep_best), "a name in the logs, or (name, 'min' or 'max')")
        name, mode = keep_best
        require(mode in ("min", "max"), "keep_best", f"mode {mode!r}", "'min' or 'max'")
        return name, mode
    for mode, words in _BETTER.items():
        if any(word in keep_best.lower() for word in words):
            return keep_best, mode
    require(False, "keep_best", repr(keep_best), f"({keep_best!r}, 'min') or ({keep_best!r}, 'max')")
    raise AssertionError  # unreachable


_BETTER = {
    "min": ("loss", "error", "mse", "mae", "perplexity"),
    "max": ("acc", "auc", "precision", "recall", "f1", "iou", "r2"),
}


def stale(directory: FilePath, step: int, newest: int) -> CheckpointError:
    return CheckpointError(
        str(directory),
        got=f"step {step}",
        expected=f"a step after {newest}, the newest one in the folder",
        fix="Continue that run from its newest step with state = manager.restore(state), delete the folders "
        "of the steps that you give up, or take a new folder.",
    )


def require(condition: bool, where: str, got: str, expected: str) -> None:
    if not condition:
        raise CheckpointError(where, got=got, expected=expected, fix="Nothing was read or written.")


def is_packed(layout: str) -> bool:
    require(layout in ("tree", "packed"), "layout", repr(layout), "'tree' or 'packed'")
    return layout == "packed"
