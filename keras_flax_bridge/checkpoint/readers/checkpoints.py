"""Checkpoints that were written with Orbax, by this package or by others."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint import foreign, model_configs, orbax_io
from keras_flax_bridge.checkpoint.readers.contents import Contents, as_numpy
from keras_flax_bridge.checkpoint.targets import Target
from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.keras_internals import VARIABLE_TREES
from keras_flax_bridge.state.report import METRIC, in_words, kind_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree

_NO_TARGET = Target({}, None, dict, of_weights=False)


class Checkpoint(Contents):
    """A folder.

    Args:
        path: the folder of one checkpoint.
        model: whose variables those of Keras's callback are; None for one of the stored config.
    """

    def __init__(self, path: FilePath, model: Any = None):
        self._stored = stored = orbax_io.Stored(path)
        unnamed, metadata = "", stored.metadata
        self.of_keras = _is_keras_s(stored)
        if self.of_keras:
            self.lacks = {METRIC: "metrics of Keras's callback have names of their own"}
            self._names, unnamed = _of_keras(stored, model)
            metadata = orbax_io.Metadata(model=None if unnamed else foreign.config(stored))
        else:
            self._names = foreign.names(stored, model, _NO_TARGET)
        specs = {name: stored.specs[place] for name, place in self._names.items()}
        super().__init__(path, _kind(stored), specs, metadata, unnamed)

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        places = {name: self._names[name] for name in paths}
        found = self._stored.load({p: orbax_io.on_host(self._stored.specs[p]) for p in places.values()})
        self._stored.require_whole(found)
        return {name: as_numpy(found[place]) for name, place in places.items()}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        return self._stored.parts(self._names[path])

    def packed(self) -> Container[Path]:
        """The leaves that lie together in one array."""
        packed = self._stored.packed
        return {name for name, place in self._names.items() if place in packed}

    def initial(self) -> Flat:
        """The values that a new state has where this file holds none."""
        state = flatten_tree(_state(self)).items()
        return {p: as_numpy(leaf) for p, leaf in state if p not in self.specs or kind_of(p) in self.lacks}

    def shardings(self) -> dict[Path, str]:
        """How leaves lay on a mesh when they were written, in words."""
        found = self._stored.shardings()
        return {name: in_words(*found[place]) for name, place in self._names.items() if place in found}


def _state(contents: Checkpoint) -> Any:
    """The state in which the model of Keras's callback starts; nothing for what others wrote."""
    config = contents.metadata.model if contents.of_keras else None
    return TrainState.from_keras(model_configs.build(config, contents.path, contents.specs)) if config else {}


def _is_keras_s(stored: Any) -> bool:
    return not stored.ours and {path[0] for path in stored.specs} <= VARIABLE_TREES.keys()


def _kind(stored: Any) -> str:
    if stored.ours:
        return "checkpoint, packed" if stored.metadata.packed else "checkpoint"
    return "checkpoint of Keras's callback" if _is_keras_s(stored) else "checkpoint of other Orbax code"


def _of_keras(stored: Any, model: Any) -> tuple[dict[Path, Path], str]:
    """The place of every leaf by structural key; else by Keras's own name, and why."""
    try:
        return foreign.names(stored, model, _NO_TARGET), ""
    except BridgeError:
        if model is not None:
            raise
    own = {(VARIABLE_TREES[path[0]], *path[1:]): path for path in stored.specs}
    return own, "the model that they are of isn't stored, or can't be built here"
