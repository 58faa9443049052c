"""Checkpoints of other Orbax code, mapped to this package's names.

Keras's `OrbaxCheckpoint` stores variables by the names of one process; `nnx.State` has, as most versions
write it, one more level called ``value``; a module's state has no ``params`` above it.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import model_configs
from keras_flax_bridge.checkpoint.orbax_io import Stored
from keras_flax_bridge.checkpoint.targets import COLLECTIONS, Target, unboxed
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.keras_internals import VARIABLE_TREES
from keras_flax_bridge.optimizers.step_interface import training_model
from keras_flax_bridge.state.building import STATE_TREES, built
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.untrusted import schema, texts

_TREES = {*STATE_TREES, "step", "eval_metrics"}
CONFIG = "model_config"  # the item in which Keras stores the config of the model


def tops(stored: Any) -> set[str]:
    """The trees of a checkpoint, by this package's names."""
    return {VARIABLE_TREES.get(path[0], path[0]) for path in stored.specs}


def names(stored: Any, like: Any, target: Target) -> dict[Path, Path]:
    """The stored path of each leaf, by this package's name."""
    if getattr(stored, "ours", True):
        return _of_weights({path: path for path in stored.specs}, target)
    if {path[0] for path in stored.specs} <= VARIABLE_TREES.keys():
        return _of_keras(stored, like)
    return _of_weights(unboxed(stored.specs), target)


def _of_weights(found: dict[Path, Path], target: Target) -> dict[Path, Path]:
    """Names of a module's state, which has no ``params`` above it, as weights where those are wanted."""
    if not target.of_weights or {path[0] for path in found} & (COLLECTIONS | _TREES):
        return found
    return {("params", *name): path for name, path in found.items()}


def config(stored: Stored) -> dict[str, Any] | None:
    """The config of the model that Keras's callback stored; None if there is none."""
    found = stored.json(CONFIG)
    if found is None:
        return None
    where = f"{stored.path / CONFIG}, config"
    read = texts.parsed(found.get("config") if isinstance(found, dict) else None, where)
    if not isinstance(read, dict):
        raise CorruptCheckpointError(
            where,
            got=schema.said(read),
            expected="the config of a model",
            fix="The file is damaged: restore a different step.",
        )
    return read


def _of_keras(stored: Stored, like: Any) -> dict[Path, Path]:
    model = _model_of(like) or _rebuilt(stored)
    found = keras_internals.found_again(model, stored.specs)
    left = set(stored.specs) - set(found.values())
    counters = [("opt_state", *inner, "iteration") for inner in (("inner_optimizer",), ())]
    counter = next((found[path] for path in counters if path in found), None)
    if counter is not None:
        found[("step",)] = counter
    # Keras has one set of totals for training and evaluation, and resets it before each
    totals = {("eval_metrics", *name[1:]): place for name, place in found.items() if name[0] == "metrics"}
    stored.start_at_zero({name: stored.specs[place] for name, place in totals.items()})
    return {
        **found,
        **{name: name for name in totals},
        **{(VARIABLE_TREES[path[0]], *path[1:]): path for path in left},
    }


def _model_of(like: Any) -> Any:
    """The Keras model of a target, with its optimizer built, if there is one."""
    model = like if isinstance(like, keras.Model) else None
    model = model or models_of(getattr(like, "apply_fn", None)).get("")
    if model is not None and model.built and model.compiled:
        return built(training_model(model), None)
    return model


def _rebuilt(stored: Stored) -> Any:
    found = config(stored)
    if found is None:
        raise CheckpointError(
            str(stored.path),
            got="variables under automatic names of another Keras process, and no config of the model",
            expected="the Keras model that they belong to",
            fix="Restore into the model with kfb.restore(path, model), and take what you need from it.",
        )
    return _model_of(model_configs.build(found, stored.path, stored.specs))
