"""A `.keras` file as a restore reads it: the state of the model in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint import guards, keras_files
from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.readers.contents import Held
from keras_flax_bridge.tree.paths import Flat, Path


class LoadedModel(Held):
    """A file whose model is loaded; what Keras doesn't write, such as seeds, is as the model starts it.

    Args:
        path: the file, or a preset folder of KerasHub.
        model: the model in it; None loads it from a `.keras` file.
    """

    def __init__(self, path: FilePath, model: Any = None):
        self._file = keras_files.KerasFile(path, model)
        super().__init__(path, self._file.specs, "Keras file" if model is None else "preset of KerasHub")

    def assets(self) -> Assets:
        """The files of layers in the archive."""
        return Assets({"": guards.assets(self.path)}) if self.path.is_file() else NO_ASSETS

    def require_stored(self) -> None:
        """As in `Contents`; the slots must be those of the model, too."""
        self._file.require_whole()
        super().require_stored()

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        return self._file.load(targets)
