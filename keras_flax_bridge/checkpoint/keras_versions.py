"""Which version of Keras wrote a config, for errors: no Keras reads every config of a newer one."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any, NamedTuple

import keras

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.guards.files import VERSION
from keras_flax_bridge.checkpoint.orbax_io import metadata
from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.startup.compat import release


class Writer(NamedTuple):
    """The version that wrote a config.

    Attributes:
        version: of Keras; ``""`` if it is not known.
        is_newer: whether it is newer than the Keras that is installed.
    """

    version: str
    is_newer: bool

    @property
    def of(self) -> str:
        """For "a config" in an error, which version it is of."""
        return f" of Keras {self.version}" if self.version else ""

    def fix(self, otherwise: str) -> str:
        """What to do about a config that can't be read."""
        if not self.is_newer:
            return otherwise
        newer = f"Update Keras, which is {keras.__version__} here, to {self.version} or newer"
        return f"{newer}, or build the model yourself and call restore(path, model)."


def writer(where: Any) -> Writer:
    """Who wrote the `.keras` file or the checkpoint in which a config lies."""
    path = FilePath(where)
    try:
        version = _of_folder(path) if path.is_dir() else guards.keras_version(path)
    except (BridgeError, OSError):
        version = ""
    numbers = release(version)
    return Writer(version, bool(numbers) and numbers > release(keras.__version__))


def _of_folder(path: FilePath) -> str:
    found = metadata.read(path)
    version = found.versions.get("keras", "") if found and found.versions else ""
    return version if VERSION.fullmatch(version) else ""
