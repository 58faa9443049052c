"""Checkpoints of other Orbax code, mapped to this package's names.

Keras's `OrbaxCheckpoint` stores variables by the names of one process; `nnx.State` has, as most versions
write it, one more level called ``value``; a module's state has no ``params`` above it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import model_configs
from keras_flax_bridge.checkpoint.orbax_io import Stored
from keras_flax_bridge.checkpoint.targets import unboxed
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.keras_internals import VARIABLE_TREES
from keras_flax_bridge.optimizers.step_interface import training_model
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.building import built
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.trees import COLLECTIONS
from keras_flax_bridge.tree.paths import Flat, Path
from keras_flax_bridge.tree.untrusted import schema, texts

CONFIG = "model_config"  # the item in which Keras stores the config of the model


class Naming(NamedTuple):
    """The structural keys of the leaves of a checkpoint that other code wrote.

    Attributes:
        places: the stored paths by structural key.
        zeros: leaves by name that the writer did not store because they are zeros.
    """

    places: dict[Path, Path]
    zeros: Flat = {}  # noqa: RUF012 - it is never changed


def of_keras(stored: Stored) -> bool:
    """Whether Keras's callback wrote a checkpoint, whose names are those of one process."""
    return not stored.ours and {path[0] for path in stored.specs} <= VARIABLE_TREES.keys()


def naming(stored: Stored, like: Any) -> Naming:
    """The names of the leaves of a checkpoint.

    Args:
        stored: the checkpoint.
        like: what a Keras model may be taken from, whose variables those of Keras's callback are.

    Raises:
        CheckpointError: if Keras's callback wrote it, and the model is not known.
    """
    if of_keras(stored):
        return _of_keras(stored, like)
    return Naming({path: path for path in stored.specs} if stored.ours else unboxed(stored.specs))


def weight_names(names: Iterable[Path]) -> dict[Path, Path]:
    """Each name as the name of a weight; also in a module's state, which has no level ``params``."""
    found = list(names)
    if {name[0] for name in found} & {*COLLECTIONS, *trees.names()}:
        return {name: name for name in found}
    return {("params", *name): name for name in found}


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


def _of_keras(stored: Stored, like: Any) -> Naming:
    model = _model_of(like) or _rebuilt(stored)
    found = keras_internals.found_again(model, stored.specs)
    left = set(stored.specs) - set(found.values())
    counters = [("opt_state", *inner, "iteration") for inner in (("inner_optimizer",), ())]
    counter = next((found[path] for path in counters if path in found), None)
    if counter is not None:
        found[("step",)] = counter
    # Keras has one set of totals for training and evaluation, and resets it before each
    others = [tree for tree in trees.of_metrics() if tree != "metrics"]
    metrics = {name[1:]: place for name, place in found.items() if name[0] == "metrics"}
    totals = {(tree, *name): place for tree in others for name, place in metrics.items()}
    zeros = {name: stored.specs[place] for name, place in totals.items()}
    return Naming({**found, **{(VARIABLE_TREES[path[0]], *path[1:]): path for path in left}}, zeros)


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
