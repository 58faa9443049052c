"""Reads what callbacks remembered when a checkpoint was written."""

from __future__ import annotations

import numpy as np

from keras_flax_bridge.checkpoint import callback_memory, checksums
from keras_flax_bridge.checkpoint.callback_memory import NO_MEMORY, Memory
from keras_flax_bridge.checkpoint.orbax_io import declared, metadata
from keras_flax_bridge.checkpoint.orbax_io.api import ARRAYS, CALLBACKS, FilePath, load, speaking
from keras_flax_bridge.checkpoint.orbax_io.background import OPERATIONS
from keras_flax_bridge.checkpoint.orbax_io.metadata import Metadata
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError


def memory(path: FilePath) -> Memory:
    """What callbacks remembered; an empty memory if none was stored.

    Raises:
        CorruptCheckpointError: if it is damaged.
    """
    ours = metadata.read(path) or Metadata()
    if ours.callbacks is None:
        return NO_MEMORY
    length = callback_memory.size(ours.callbacks)
    buffer = _read(path, length) if length else np.zeros(0, np.uint8)
    if length and checksums.checksum(buffer) != ours.callback_arrays:
        raise CorruptCheckpointError(
            f"{path}/{CALLBACKS}",
            got="arrays with another checksum than was written",
            expected="what callbacks remembered",
            fix="Take another step.",
        )
    return Memory.from_json(ours.callbacks, buffer)


def _read(path: FilePath, length: int) -> np.ndarray:
    wanted = {ARRAYS: np.broadcast_to(np.zeros((), np.uint8), (length,))}
    with speaking(path / CALLBACKS, "reading", CorruptCheckpointError), OPERATIONS.loading():
        declared.Files(path, path / CALLBACKS).checked()  # checked first
        return np.asarray(load(path, wanted, CALLBACKS)[ARRAYS])


def damaged_memory(path: FilePath) -> dict[str, str]:
    """What is wrong with the arrays that callbacks remember."""
    try:
        memory(path)
    except CheckpointError as error:
        return {CALLBACKS: str(error.got)}
    return {}
