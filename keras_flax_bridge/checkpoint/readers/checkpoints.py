"""Checkpoints that were written with Orbax, by this package or by others."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint import assets, foreign, model_configs, orbax_io
from keras_flax_bridge.checkpoint.assets import Assets
from keras_flax_bridge.checkpoint.readers.contents import Contents, as_numpy
from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.keras_internals import VARIABLE_TREES
from keras_flax_bridge.state.report import METRIC, in_words, kind_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree


class Checkpoint(Contents):
    """A folder.

    Args:
        stored: the checkpoint, opened.
        like: a model, or what was taken from one, whose variables those of Keras's callback are; None for a
            model of the stored config.
    """

    def __init__(self, stored: orbax_io.Stored, like: Any = None):
        self._stored = stored
        self.of_keras = foreign.of_keras(stored)
        if self.of_keras:
            self.lacks = {METRIC: "metrics of Keras's callback have different names"}
        naming, unnamed = _naming(stored, like)
        stored.start_at_zero(naming.zeros)
        self._names = {**naming.places, **{name: name for name in naming.zeros}}
        specs = {name: stored.specs[place] for name, place in self._names.items()}
        super().__init__(stored.path, _kind(stored), specs, stored.metadata, unnamed)

    @property
    def config(self) -> Any:
        """The config of the model, as this package or as Keras's callback stored it."""
        return foreign.config(self._stored) if self.of_keras and not self.unnamed else super().config

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        places = {name: self._names[name] for name in targets}
        found = self._stored.load({place: targets[name] for name, place in places.items()})
        return {name: found[place] for name, place in places.items()}

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk."""
        self._stored.require_stored()

    def require_whole(self, values: Flat) -> None:
        """Compares values with the stored checksums."""
        self._stored.require_whole({self._names[name]: leaf for name, leaf in values.items()})

    def load_data(self, iterator: Any) -> None:
        """Sets a data iterator to the position that was stored."""
        self._stored.load_data(iterator)

    def assets(self) -> Assets:
        """The files of layers that are stored beside the leaves."""
        return orbax_io.assets(self._stored)

    def asset_sizes(self) -> dict[str, int]:
        """The size of each of these files; of those of Keras's callback none is known without reading."""
        return assets.names(self.metadata.assets or {})

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        self.require_stored()
        found = self.load({path: orbax_io.on_host(self.specs[path]) for path in paths})
        self.require_whole(found)
        return {path: as_numpy(leaf) for path, leaf in found.items()}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        self.require_stored()
        return self._stored.parts(self._names[path])

    def packed(self) -> Container[Path]:
        """The leaves that are packed in one array."""
        packed = self._stored.packed
        return {name for name, place in self._names.items() if place in packed}

    def initial(self) -> Flat:
        """The values that a new state has where this file holds none."""
        state = flatten_tree(_state(self)).items()
        return {p: as_numpy(leaf) for p, leaf in state if p not in self.specs or kind_of(p) in self.lacks}

    def shardings(self) -> dict[Path, str]:
        """Descriptions of the shardings with which leaves were saved."""
        found = self._stored.shardings()
        return {name: in_words(*found[place]) for name, place in self._names.items() if place in found}


def _state(contents: Checkpoint) -> Any:
    """The state in which the model of Keras's callback starts; nothing for what others wrote."""
    config = contents.config if contents.of_keras else None
    return TrainState.from_keras(model_configs.build(config, contents.path, contents.specs)) if config else {}


def _kind(stored: orbax_io.Stored) -> str:
    if stored.ours:
        return "checkpoint, packed" if stored.metadata.packed else "checkpoint"
    return "checkpoint of Keras's callback" if foreign.of_keras(stored) else "checkpoint of other Orbax code"


def _naming(stored: orbax_io.Stored, like: Any) -> tuple[foreign.Naming, str]:
    """The place of every leaf by structural key; else by Keras's own name, and why."""
    try:
        return foreign.naming(stored, like), ""
    except BridgeError:
        if like is not None:
            raise
    own = {(VARIABLE_TREES[path[0]], *path[1:]): path for path in stored.specs}
    return foreign.Naming(own), "the model that they are of isn't stored, or can't be built here"
