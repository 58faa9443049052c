"""Keras's own files as checkpoints: `.keras` into anything, `.weights.h5` into the model it is of.

Keras writes no seeds and no metrics: a model from its files draws other masks than the one saved would.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import jax
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import guards, model_configs, optimizer_extras
from keras_flax_bridge.checkpoint.guards import archive as archive_module
from keras_flax_bridge.checkpoint.keras_versions import writer
from keras_flax_bridge.errors import CheckpointError, StructureMismatchError, said
from keras_flax_bridge.keras_internals import SLACK
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.state.trees import WEIGHTS
from keras_flax_bridge.tree import untrusted
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree


@contextlib.contextmanager
def _speaking(path: FilePath) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, StructureMismatchError):
        raise  # they say which leaves
    except Exception as error:  # Keras raises many kinds, of h5py and zipfile too
        by = writer(path)
        raise CheckpointError(
            str(path),
            got=f"a file{by.of}, {type(error).__name__}: {said(error)}",
            expected="a file that Keras can read without running code of it",
            fix=by.fix(
                "Register your classes with keras.saving.register_keras_serializable, or load the file "
                "yourself with keras.saving.load_model and take the model."
            ),
        ) from error


def load_model(path: FilePath) -> Any:
    """The model in a `.keras` file, read in Keras's safe mode.

    Raises:
        CheckpointError: if it is a file of another kind, the guards refuse it, or Keras can't read it.
    """
    if not path.name.endswith(".keras"):  # Keras would read another kind, whose config nothing has looked at
        weights = path.name.endswith(".weights.h5")
        raise CheckpointError(
            str(path),
            got="a file of weights alone" if weights else "a name without the suffix .keras",
            expected="a model in a .keras file, or a checkpoint with its config",
            fix="Build the model yourself and call restore(path, model).",
        )
    model, lost = _loaded(path)
    if lost is not None:
        raise lost
    return model


def _loaded(path: FilePath) -> tuple[Any, StructureMismatchError | None]:
    """The model in a `.keras` file, and an error if the slots in it are those of another optimizer."""
    guards.require_loadable(path)
    with _speaking(path):
        config = guards.config(path)
        untrusted.require_safe(config, path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = _filled(path, config)
        optimizer_extras.put_back(model, optimizer_extras.read(path), path)
    return model, _lost_slots(path, caught)


def _lost_slots(path: FilePath, caught: Iterable[warnings.WarningMessage]) -> StructureMismatchError | None:
    """The error in place of Keras's warning that slots don't fit, where it goes on with new ones."""
    for warning in caught:
        counts = _SKIPPED.search(str(warning.message))
        if counts and int(counts["stored"]) > _UNBUILT:
            return StructureMismatchError(
                f"optimizer in {path}",
                got=f"{counts['stored']} variables for a model whose optimizer has {counts['own']}",
                expected="those of the optimizer that the config describes",
                fix="A config does not say which single weights are frozen, nor which layers inside of "
                "others have LoRA: build the model as it was saved, and call restore(path, model).",
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return None


# what Keras warns of an optimizer; one that was not built stores its iteration and its learning rate
_SKIPPED = re.compile(
    r"Skipping variable loading for optimizer .* has (?P<own>\d+) variables.* (?P<stored>\d+) variables"
)
_UNBUILT = 2


def _filled(path: FilePath, config: Any) -> Any:
    """The model of a config that was checked, with the weights in its file."""
    most = _most(path)

    def build() -> Any:
        with keras_internals.bounded(most, str(path)):
            return model_configs.build(config, path)

    files = guards.assets(path)
    with guards.weights_alone(path) as weights:
        rewind = keras_internals.random_states()
        if weights is not None:

            def fill(model: Any) -> None:
                # outside of safe mode, as in Keras: there tokenizers read no files, not even their own
                keras_internals.load_assets(model, files, path)
                if model.built:
                    model.load_weights(weights)  # array by array; Keras's loader holds the whole file twice

            model = keras_internals.filled(build, fill)
            if model.built:
                return model
            rewind()
        bounds = keras_internals.bounded(most, str(path))
        with bounds, keras_internals.weights_on_disk(), keras_internals.safe_mode():
            return keras.saving.load_model(path, safe_mode=True)


def _most(path: FilePath) -> int:
    """The maximum number of elements of the model in a file: each takes at least one byte, most take four.

    Weights of four bytes leave room for slots and averages that the file does not contain.
    """
    with archive_module(path) as archive:
        return SLACK + archive.members[guards.WEIGHTS].file_size


class KerasFile:
    """The state of the model in a `.keras` file."""

    def __init__(self, path: FilePath, model: Any = None):
        """`model` already has the values of the file; None loads it."""
        model, self._lost = _loaded(path) if model is None else (model, None)
        self.model = model
        state = TrainState.from_keras(model, optimizer=None if model.compiled else "sgd", copy=False)
        state.assign_to(model, copy=False)  # both share buffers, which is safe since neither is trained
        flat = flatten_tree(state)
        self._values = {
            p: leaf for p, leaf in flat.items() if (model.compiled and not self._lost) or p[0] in WEIGHTS
        }
        self.specs: Flat = self._values

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        self.require(targets)
        return {
            path: jax.device_put(self._values[path], getattr(target, "sharding", None))
            for path, target in targets.items()
        }

    @property
    def is_whole(self) -> bool:
        """Whether the model has all that the file holds, slots among it."""
        return self._lost is None

    def require(self, paths: Iterable[Path]) -> None:
        """Checks that the file has these leaves.

        Raises:
            StructureMismatchError: if they are slots, and those in the file are of other weights.
        """
        if not self._values.keys() >= set(paths):
            self.require_whole()

    def require_whole(self) -> None:
        """Checks that the file has no slots of other weights; `require` raises the same."""
        if self._lost is not None:
            raise self._lost


def restore_weights(path: FilePath, model: Any) -> Any:
    """A `.weights.h5` file into the model, all or nothing.

    Raises:
        StructureMismatchError: if `model` is no Keras model.
        CheckpointError: if the guards refuse the file, or Keras can't read it into the model; then
            the model is as before.
    """
    _require_built(path, model)
    variables = [entry.variable for found in receivers(model).values() for entry in found]
    with all_or_nothing(model, variables):
        read_weights(path, model)
    return model


@contextlib.contextmanager
def all_or_nothing(model: Any, variables: Sequence[Any]) -> Iterator[None]:
    """Gives these variables of a model their values back where reading into it fails."""
    before = [variable.value for variable in variables]  # arrays of jax don't change
    try:
        yield
    except CheckpointError:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        raise
    finally:
        keras_internals.refresh(model)


def read_weights(path: FilePath, model: Any) -> None:
    """A `.weights.h5` file into a model that is of no use where that fails.

    Raises:
        StructureMismatchError: if `model` is no Keras model.
        CheckpointError: if the guards refuse the file, or Keras can't read it into the model.
    """
    _require_built(path, model)
    guards.require_loadable(path)
    with _speaking(path):
        model.load_weights(path)


def _require_built(path: FilePath, model: Any) -> None:
    if not isinstance(model, keras.Model) or not model.built:
        raise StructureMismatchError(
            str(path),
            got=f"{'an unbuilt' if isinstance(model, keras.Model) else 'a'} {type(model).__name__}",
            expected="a built keras.Model",
            fix="Weights files do not describe the model: restore into the model that was saved.",
        )
