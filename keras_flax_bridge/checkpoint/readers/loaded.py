"""A `.keras` file as a restore reads it: the state of the model in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint import keras_files
from keras_flax_bridge.checkpoint.readers.contents import Held
from keras_flax_bridge.tree.paths import Flat, Path


class LoadedModel(Held):
    """A file whose model is loaded; what Keras doesn't write, such as seeds, is as the model starts it."""

    def __init__(self, path: FilePath):
        self._file = keras_files.KerasFile(path)
        super().__init__(path, self._file.specs, "Keras file")

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        return self._file.load(targets)
