"""`.keras` and `.weights.h5` files: their arrays one by one, their config, and what Keras may load."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import h5py
import numpy as np

from keras_flax_bridge.checkpoint.guards import hdf5, limits, texts
from keras_flax_bridge.checkpoint.guards.archive import archive
from keras_flax_bridge.checkpoint.guards.chunks import require_unpacked_sizes
from keras_flax_bridge.checkpoint.guards.limits import refusal
from keras_flax_bridge.checkpoint.slices import slices
from keras_flax_bridge.errors import BridgeError, shortened
from keras_flax_bridge.tree.untrusted.texts import require_regular

KERAS, H5, TENSORS = ".keras", ".weights.h5", ".safetensors"
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"  # the items of a `.keras` file
VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{,30}", re.ASCII)


class Weights(NamedTuple):
    """The arrays in an open file, checked; none was read."""

    path: FilePath
    file: h5py.File
    arrays: dict[str, hdf5.Array]

    def read(self, name: str, where: Any = ()) -> np.ndarray:
        """An array, or the part of it at an index."""
        return hdf5.value(self.file[name], self.arrays[name], where)

    def pieces(self, name: str, size: int) -> Iterator[np.ndarray]:
        """An array in parts of about so many bytes, in C order."""
        array = self.arrays[name]
        for where in slices(array.shape, max(1, size // array.width), array.rows):
            yield self.read(name, where)

    def require_unpacked_sizes(self) -> None:
        """Checks by reading that compressed chunks unpack to their declared size."""
        for name, array in self.arrays.items():
            require_unpacked_sizes(self.path, name, self.file[name], array)


def kind(path: FilePath) -> str:
    """The suffix of a file that is read here; ``""`` for another."""
    return next((suffix for suffix in (KERAS, H5, TENSORS) if path.name.endswith(suffix)), "")


@contextlib.contextmanager
def weights(path: FilePath, *, values: bool = False) -> Iterator[Weights]:
    """The arrays of a `.keras` or `.weights.h5` file.

    Args:
        path: the file.
        values: whether arrays will be read: then the archive's checksums, and what compressed chunks
            unpack to, are checked first.

    Raises:
        CheckpointError: if it is not such a file, or contains something that Keras never writes.
        CorruptCheckpointError: if a checksum of the archive differs.
    """
    with contextlib.ExitStack() as stack:
        if kind(path) == KERAS:
            opened = stack.enter_context(archive(path))
            if values:
                opened.require_whole()
            file: Any = stack.enter_context(opened.file(WEIGHTS))
            stored = opened.stored(WEIGHTS)
            size = opened.members[WEIGHTS].file_size
        else:
            require_regular(path)
            file, size = path, path.stat().st_size
            stored = size
        found = stack.enter_context(_arrays(path, file, size, stored))
        if values:
            found.require_unpacked_sizes()
        yield found


@contextlib.contextmanager
def _arrays(path: FilePath, file: Any, size: int, stored: int) -> Iterator[Weights]:
    with _speaking(path), h5py.File(file, "r") as opened:
        yield Weights(path, opened, hdf5.arrays(path, opened, size, stored))


@contextlib.contextmanager
def _speaking(path: FilePath) -> Iterator[None]:
    try:
        yield
    except (BridgeError, MemoryError):
        raise
    except Exception as error:  # HDF5 and h5py raise many kinds
        got = f"{type(error).__name__}: {shortened(str(error))}"
        raise refusal(path, "the arrays", got, "an HDF5 file that Keras wrote") from error


def config(path: FilePath) -> dict[str, Any]:
    """The config of the model in a `.keras` file.

    Raises:
        CheckpointError: if it can't be read, or is not a config that Keras wrote.
    """
    with archive(path) as opened:
        return texts.parsed(path, CONFIG, opened.text(CONFIG, limits.CONFIG))


def keras_version(path: FilePath) -> str:
    """The version of Keras that wrote a `.keras` file; ``""`` where the file does not say it as Keras does.

    Raises:
        CheckpointError: if the file can't be read.
    """
    with archive(path) as opened:
        found = texts.parsed(path, METADATA, opened.text(METADATA, limits.CONFIG))
    version = found.get("keras_version")
    return version if isinstance(version, str) and VERSION.fullmatch(version) else ""


@contextlib.contextmanager
def weights_alone(path: FilePath) -> Iterator[FilePath | None]:
    """The weights of a `.keras` file as a temporary `.weights.h5` file.

    None where the archive holds more than weights and a config, such as vocabularies.
    """
    with archive(path) as opened, tempfile.TemporaryDirectory() as folder:
        if not opened.members.keys() <= {WEIGHTS, CONFIG, METADATA}:
            yield None
            return
        target = FilePath(folder) / WEIGHTS
        with opened.file(WEIGHTS) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, limits.MEBI)
        yield target


def require_loadable(path: FilePath) -> None:
    """Checks a file before Keras reads it, all of it; each array in the bounds of one chunk.

    Raises:
        CheckpointError: if it is not a Keras file, or contains something that Keras never writes.
        CorruptCheckpointError: if a checksum of the archive differs.
    """
    if kind(path) == KERAS:
        config(path)
    with weights(path, values=True):
        pass
