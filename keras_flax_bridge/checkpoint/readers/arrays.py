"""Files of arrays by name, such as `.safetensors` and `.npz`, whose names are their writers' own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

import jax
import numpy as np

from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.checkpoint.slices import GROUP
from keras_flax_bridge.tree.paths import Flat, Path, split_path
from keras_flax_bridge.tree.untrusted import records, texts
from keras_flax_bridge.tree.untrusted.schema import Malformed

Array = TypeVar("Array")
_FIX = "The file is damaged, or holds what numpy and jax do not have in common."


class Arrays(Contents):
    """A file; subclasses read the elements of an array.

    Args:
        path: the file.
        kind: a description of its format.
        arrays: something with a shape and a dtype for each array, or a number, by path.
        metadata: what else is stored.
    """

    own_names = True

    def __init__(
        self, path: FilePath, kind: str, arrays: Mapping[Path, Any], metadata: Metadata | None = None
    ):
        specs = {name: _spec(array) for name, array in arrays.items()}
        super().__init__(path, kind, specs, metadata)

    def read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        raise NotImplementedError

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        return {path: self._whole(path) for path in paths}

    def _whole(self, path: Path) -> Any:
        spec = self.specs[path]
        return self.read(path, 0, spec.size) if hasattr(spec, "shape") else spec

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets; one at a time is on the host."""
        found: Flat = {}
        with self.reading():
            for path, target in targets.items():
                sharding = getattr(target, "sharding", None)
                value = self._whole(path)
                found[path] = value if sharding is None else jax.device_put(value, sharding)
        return found

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        spec = self.specs[path]
        size, step = spec.size, GROUP // np.dtype(spec.dtype).itemsize
        for begin in range(0, size, step):
            yield self.read(path, begin, min(step, size - begin)).reshape(-1)


def _spec(array: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype) if hasattr(array, "shape") else array


def by_path(path: FilePath, arrays: Mapping[str, Array]) -> dict[Path, Array]:
    """Arrays by path: others do not write ~ in a name as this package does.

    Raises:
        CheckpointError: if two names are the same path.
    """
    found: dict[Path, str] = {}
    for name in arrays:
        place = split_path(name)
        if place in found:
            fault = Malformed(name, f"the same path as {texts.clipped(found[place])}", "paths that differ")
            raise records.malformed(fault, str(path), fix=_FIX)
        found[place] = name
    return {place: arrays[name] for place, name in found.items()}
