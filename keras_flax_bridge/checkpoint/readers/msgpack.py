"""Files of Flax: `flax.training.checkpoints` and `flax.serialization.to_bytes`."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.readers.arrays import Arrays
from keras_flax_bridge.tree.paths import Path


class Msgpack(Arrays):
    """A file; its arrays are read by their places in it, without the library."""

    def __init__(self, path: FilePath):
        self._leaves = guards.packed(path)
        super().__init__(path, "msgpack file of Flax", self._leaves)

    def read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        array = self._leaves[path]
        width = array.dtype.itemsize
        found, at = np.empty(count, array.dtype), 0
        first, last = begin * width, (begin + count) * width
        view = found.view(np.uint8)
        for start, end in array.parts:
            low, high = max(first, at), min(last, at + end - start)
            if low < high:
                view[low - first : high - first] = np.fromfile(
                    self.path, np.uint8, high - low, offset=start + low - at
                )
            at += end - start
        return found.reshape(array.shape) if count == self.specs[path].size else found
