"""Dictionaries of arrays in memory, such as what `numpy.load` or `safetensors.numpy.load_file` return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import keras
import numpy as np

from keras_flax_bridge.checkpoint.readers.arrays import Arrays, by_path
from keras_flax_bridge.errors import ArgumentError
from keras_flax_bridge.tree.leaves import is_abstract
from keras_flax_bridge.tree.paths import Path

_NAME = FilePath("the dict")


class Dict(Arrays):
    """A dict, flat or nested; slashes in a name are levels.

    Raises:
        ArgumentError: naming what is no array of numbers.
    """

    def __init__(self, given: Mapping[str, Any]):
        flat = dict(_flattened("", given))
        self._values = by_path(_NAME, {name: _array(name, value) for name, value in flat.items()})
        super().__init__(_NAME, "dict", self._values)

    def read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        value = self._values[path]
        whole: np.ndarray = np.array(value) if count == value.size else np.ravel(value)[begin : begin + count]
        return whole


def _flattened(above: str, given: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if not isinstance(name, str):
            raise _wrong(repr(name), f"a {type(name).__name__} as a name", "names that are texts")
        if isinstance(value, Mapping):
            yield from _flattened(f"{above}{name}/", value)
        else:
            yield f"{above}{name}", value


def _array(name: str, value: Any) -> np.ndarray:
    value = value.value if isinstance(value, keras.Variable) else value
    found = None if value is None or is_abstract(value) else np.asarray(value)
    if found is None or found.dtype.kind in "OSUmM" or found.dtype.names:
        raise _wrong(name, f"a {type(value).__name__}", "an array of numbers")
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _wrong(where: str, got: str, expected: str) -> ArgumentError:
    return ArgumentError(where, got=got, expected=expected, fix="Pass a dict of arrays by name, or a path.")
