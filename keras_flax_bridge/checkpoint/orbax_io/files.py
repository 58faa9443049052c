"""Reads the files of layers, such as vocabularies, that lie beside a state."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint import assets as indexes
from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.checkpoint.orbax_io import declared
from keras_flax_bridge.checkpoint.orbax_io.api import ARRAYS, ASSETS, FilePath, load, speaking, stored_tree
from keras_flax_bridge.checkpoint.orbax_io.background import OPERATIONS
from keras_flax_bridge.checkpoint.orbax_io.reading import Stored
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, listing
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree
from keras_flax_bridge.tree.untrusted.schema import Malformed
from keras_flax_bridge.tree.untrusted.texts import clipped


def assets(stored: Stored) -> Assets:
    """The files of layers in a checkpoint of this package, or of Keras's callback.

    Raises:
        CorruptCheckpointError: if they are damaged, or not as they are written.
    """
    found, damaged = _assets(stored)
    if damaged:
        raise CorruptCheckpointError(
            str(stored.path),
            got=listing("damaged assets", [f"{name}  {what}" for name, what in damaged.items()]),
            expected="the bytes that were written",
            fix="Take another step; kfb.verify(path) says which are whole.",
        )
    return found


def damaged_assets(stored: Stored) -> dict[str, str]:
    """What is wrong with the files of layers, by name."""
    try:
        return _assets(stored)[1]
    except CheckpointError as error:
        return {ASSETS: str(error.got)}


def _assets(stored: Stored) -> tuple[Assets, dict[str, str]]:
    if not stored.ours:
        return _of_keras(stored.path), {}
    index = stored.metadata.assets or {}
    length = indexes.size(index)
    wanted: dict[Path, int] = {(ARRAYS,): length}
    buffer = _read(stored.path, wanted)[(ARRAYS,)] if length else np.zeros(0, np.uint8)
    return indexes.taken_apart(index, buffer)


def _of_keras(path: FilePath) -> Assets:
    """Files as Keras's callback stores them: a tree of folders whose leaves are arrays of bytes."""
    if not (path / ASSETS).is_dir():
        return NO_ASSETS
    found = _read(path, None)
    files = {"/".join(place): leaf.tobytes() for place, leaf in found.items()}
    for name in files:
        try:
            indexes.require_path(name, ASSETS)
        except Malformed as fault:
            raise _odd(path, fault.got, fault.expected) from fault
    return Assets({"": files})


def _read(path: FilePath, wanted: dict[Path, int] | None) -> dict[Path, np.ndarray]:
    """The arrays of bytes in the item, which have the given sizes; None where any is right."""
    with speaking(path / ASSETS, "reading", CorruptCheckpointError), OPERATIONS.loading():
        files = declared.Files(path, path / ASSETS)
        files.checked()  # checked first
        files.require_stored()
        tree = stored_tree(path, ASSETS)
        specs = flatten_tree(tree)
        sizes = {place: _size(path, leaf) for place, leaf in specs.items()}
        if wanted is not None and sizes != wanted:
            raise _odd(path, f"arrays of {sum(sizes.values()):,} bytes", f"{sum(wanted.values()):,} bytes")
        if len(sizes) > limits.MEMBERS or sum(sizes.values()) > limits.ASSETS:
            raise _odd(path, "more files or bytes than any vocabulary", f"at most {limits.ASSETS:,} bytes")
        zeros = {p: np.broadcast_to(np.zeros((), np.uint8), (size,)) for p, size in sizes.items()}
        found = flatten_tree(load(path, fill_tree(tree, zeros), ASSETS))
        return {place: np.asarray(leaf) for place, leaf in found.items()}


def _size(path: FilePath, leaf: Any) -> int:
    shape = getattr(leaf, "shape", None)
    if shape is None or len(shape) != 1 or str(getattr(leaf, "dtype", "")) != "uint8":
        raise _odd(path, clipped(str(leaf), 100), "an array of bytes for each file")
    return int(shape[0])


def _odd(path: FilePath, got: str, expected: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path}/{ASSETS}", got=got, expected=expected, fix="Take another step: this one is damaged."
    )
