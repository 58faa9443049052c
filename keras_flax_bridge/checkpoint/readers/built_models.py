"""A `.keras` file for a model that is built already: arrays are read by name, nothing of the config is built.

So a restore works where a class of the config can't be built, such as a layer of a newer Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.assets import Assets
from keras_flax_bridge.checkpoint.readers import keras_arrays
from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.optimizers.step_interface import KerasTransformation, training_model
from keras_flax_bridge.state.building import built
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.report import METRIC, SLOT, kind_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.tree.diff import same_spec
from keras_flax_bridge.tree.leaves import is_abstract
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree

_SLOTS = "optimizer/vars"  # the group of the arrays of an optimizer
_ITERATION = ("opt_state", "iteration")


class BuiltModel(Contents):
    """A file, and the model that its arrays are of.

    What Keras's files do not hold, seeds and metrics, is as in the target.

    Attributes:
        fits: whether the file has the arrays that the target wants, and no other. Where it has not, only the
            config says which arrays of the file are which.
    """

    def __init__(self, path: FilePath, like: Any, model: Any):
        wanted = _leaves(like)
        names = keras_arrays.names(model)
        if _ITERATION in names:
            names[("step",)] = names[_ITERATION]
        with guards.weights(path) as weights:
            stored = {"/".join(name): leaf for name, leaf in keras_arrays.specs_of(weights.arrays).items()}
            alike = _alike(weights.file, guards.config(path), model)
        found = {place: name for place, name in names.items() if place in wanted and _group(name) in alike}
        specs = {p: stored[n] for p, n in found.items() if same_spec(stored.get(n), _spec(wanted[p]))}
        self._places = {place: found[place] for place in specs}
        self._kept = {
            p: leaf for p, leaf in wanted.items() if p not in names and kind_of(p) in (SEED, METRIC)
        }
        rest = {name: leaf for name, leaf in stored.items() if name not in self._places.values()}
        slots = any(kind_of(place) == SLOT for place in wanted)
        left = [name for name in rest if slots or _group(name) != _SLOTS]
        self.fits = not left and wanted.keys() == {*self._places, *self._kept}
        specs |= {place: _spec(leaf) for place, leaf in self._kept.items()}
        super().__init__(path, "Keras file", {**specs, **{_place(name): leaf for name, leaf in rest.items()}})

    def assets(self) -> Assets:
        """The files of layers in the archive."""
        return Assets({"": guards.assets(self.path)})

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        found: Flat = {}
        with guards.weights(self.path, values=True) as weights:
            for path, target in targets.items():
                name = self._places.get(path)
                value = self._start(path) if name is None else weights.read(name)
                found[path] = jax.device_put(value, getattr(target, "sharding", None))
        return found

    def _start(self, path: Path) -> Any:
        """The value of a leaf that the file does not hold: that of the target, if it has one."""
        leaf = self._kept[path]
        if isinstance(leaf, keras.Variable):
            return leaf.value
        if not is_abstract(leaf) and not (isinstance(leaf, jax.Array) and leaf.is_deleted()):
            return leaf
        is_seed = kind_of(path) == SEED
        return keras_internals.seed_at(path[1:]) if is_seed else jnp.zeros(leaf.shape, leaf.dtype)


def for_built(path: FilePath, like: Any) -> BuiltModel | None:
    """The file for the model of a target; None where a target has none that says what the file holds."""
    model = _model_of(like)
    return None if model is None or not model.built else BuiltModel(path, like, model)


def _model_of(like: Any) -> Any:
    """The Keras model of a target, with the optimizer whose slots it has."""
    if isinstance(like, keras.Model):
        is_keras = isinstance(getattr(like, "optimizer", None), keras.optimizers.Optimizer)
        trained = like.built and like.compiled and is_keras
        return built(training_model(like), None) if trained else None if like.compiled else like
    if isinstance(like, TrainState) and isinstance(like.tx, KerasTransformation):
        model = models_of(like.apply_fn).get("")
        return model if getattr(model, "optimizer", None) is like.tx.optimizer else None
    return None


def _leaves(like: Any) -> Flat:
    """The leaves of a target: those of a state, or the variables of a model."""
    if isinstance(like, TrainState):
        return flatten_tree(like)
    found = receivers(like).items()
    return {(tree, *entry.path): entry.variable for tree, entries in found for entry in entries}


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, keras.Variable):
        return keras_internals.variable_spec(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _alike(file: Any, config: Mapping[str, Any], model: Any) -> set[str]:
    """The groups of a file whose arrays are of the layers, or the optimizer, that have them in a model.

    Keras calls a group by the class of a layer and its number. The name of the layer lies beside it.
    """
    owners = keras_internals.owners_in_files(model).items()
    found = {group for group, pattern in owners if pattern.fullmatch(_owner(file, group))}
    optimizer = {_SLOTS} if _same_optimizer(config, getattr(model, "optimizer", None)) else set()
    return {"vars", *found, *optimizer}


def _owner(file: Any, group: str) -> str:
    """What the layer that owns a group of variables was called; ``""`` where the file does not say it."""
    name = file[group].attrs.get("name", "") if group in file else ""
    return name if isinstance(name, str) else ""


def _place(name: str) -> Path:
    """The path of an array that has none in the target."""
    return ("opt_state" if _group(name) == _SLOTS else "params", *name.split("/"))


def _same_optimizer(config: Mapping[str, Any], optimizer: Any) -> bool:
    """Whether the optimizer of a config has the slots of another one: its arrays have numbers for names.

    The class is the same, and what is zero, None or False in one is in the other.
    """
    compiled = config.get("compile_config")
    return _same(compiled.get("optimizer") if isinstance(compiled, dict) else None, optimizer)


def _same(found: Any, optimizer: Any) -> bool:
    if not isinstance(found, dict) or found.get("class_name") != type(optimizer).__name__:
        return False
    stored, own = found.get("config"), _config(optimizer)
    if not isinstance(stored, dict):
        return False
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None and not _same(stored.get("inner_optimizer"), inner):
        return False
    settings = (stored.keys() | own.keys()) - {"inner_optimizer", "name", "learning_rate"}
    return all(bool(stored.get(name)) == bool(own.get(name)) for name in settings)


def _config(optimizer: Any) -> dict[str, Any]:
    """The settings of an optimizer, which may be abstract: the learning rate is not among those compared."""
    empty = [(v, jnp.zeros(v.shape, v.dtype)) for v in optimizer.variables if not v.shape]
    with keras.StatelessScope(empty):
        found: dict[str, Any] = optimizer.get_config()
        return found
