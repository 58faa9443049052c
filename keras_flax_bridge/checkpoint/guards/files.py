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

KERAS, H5, TENSORS, NPZ = ".keras", ".weights.h5", ".safetensors", ".npz"
INDEX, MSGPACK = ".safetensors.index.json", ".msgpack"
_OF_FLAX = re.compile(
    r"[A-Za-z0-9_-]*?_?[0-9]{1,18}", re.ASCII
)  # what `flax.training.checkpoints` calls a file
SUFFIXES = (KERAS, H5, TENSORS, NPZ, INDEX, MSGPACK)
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"  # the items of a `.keras` file
ASSETS = "assets/"  # the folder of what layers write
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
    """The suffix of a file that is read here; ``""`` for another. Flax's ``checkpoint_12`` has none."""
    found = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return found or (MSGPACK if _OF_FLAX.fullmatch(path.name) else "")


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

    None where the archive holds more than weights, a config and assets.
    """
    with archive(path) as opened, tempfile.TemporaryDirectory() as folder:
        if not {name for name in opened.members if not _is_asset(name)} <= {WEIGHTS, CONFIG, METADATA}:
            yield None
            return
        target = FilePath(folder) / WEIGHTS
        with opened.file(WEIGHTS) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, limits.MEBI)
        yield target


def assets(path: FilePath) -> dict[str, bytes]:
    """The files of layers, such as vocabularies, in a `.keras` file, by their paths below ``assets``.

    Raises:
        CheckpointError: if they are more than any model has.
        CorruptCheckpointError: if a checksum of the archive differs.
    """
    with archive(path) as opened:
        names = _assets(opened)
        return {name.removeprefix(ASSETS): opened.text(name, limits.ASSETS) for name in names}


def asset_sizes(path: FilePath) -> dict[str, int]:
    """The size of each of these files; none is read."""
    with archive(path) as opened:
        return {name: opened.members[name].file_size for name in _assets(opened)}


def _assets(opened: Any) -> list[str]:
    names = [name for name in opened.members if _is_asset(name) and not name.endswith("/")]
    size = sum(opened.members[name].file_size for name in names)
    if size > limits.ASSETS:
        raise refusal(opened.path, ASSETS, f"{size:,} bytes", f"at most {limits.ASSETS:,}")
    long = [name for name in names for part in name.split("/") if len(part.encode()) > limits.FILE_NAME]
    if long:
        raise refusal(opened.path, long[0], "a name of a file that is too long", "what file systems take")
    return names


def _is_asset(name: str) -> bool:
    return name.startswith(ASSETS)


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
