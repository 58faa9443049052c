"""`.npz` files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

import numpy as np

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.readers.arrays import Arrays, by_path
from keras_flax_bridge.tree.paths import Path


class Npz(Arrays):
    """A file of `numpy.savez`; slashes in a name are levels."""

    def __init__(self, path: FilePath):
        with guards.npz(path) as found:
            self._names = by_path(path, {name: name for name in found.arrays})
            super().__init__(path, "npz file", {p: found.arrays[name] for p, name in self._names.items()})
        self._open: guards.Npz | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Opens and checks the file once."""
        if self._open is not None:
            yield
            return
        with guards.npz(self.path, values=True) as self._open:
            try:
                yield
            finally:
                self._open = None

    def read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        with self.reading():
            assert self._open is not None
            return self._open.read(self._names[path], begin, count)
