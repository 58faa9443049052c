"""The packed layout: small leaves are stored in one array of bytes, with an index in the metadata.

Orbax's cost is per leaf, some milliseconds each; a state of many small leaves is written and read
many times faster as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.paths import Flat, Path, join_path, split_path

LIMIT = 1 << 16  # bytes: a leaf of this size or more is a separate array

_FILE, _FILES = 1 << 25, 64  # the least size of a file, in bytes, and about how many there are at most

Index = dict[str, tuple[int, str, tuple[int, ...]]]  # path: where it begins, dtype, shape


def _is_small(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype") or leaf.nbytes >= LIMIT:
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_replicated


def pack(flat: Flat, host: Mapping[Path, np.ndarray]) -> tuple[np.ndarray, Index, Flat]:
    """The bytes of all small leaves, the index of each, and the leaves that are not small.

    Args:
        flat: all leaves.
        host: the arrays, in the memory of this process.
    """
    small = {path: host[path] for path, leaf in flat.items() if _is_small(leaf)}
    parts = [leaf.tobytes() for leaf in small.values()]
    begins = accumulate(map(len, parts), initial=0)
    index: Index = {
        join_path(path): (begin, dtype_name(leaf.dtype), leaf.shape)
        for (path, leaf), begin in zip(small.items(), begins, strict=False)
    }
    buffer = np.frombuffer(b"".join([*parts, b"\0"]), np.uint8)  # Orbax stores no empty array
    return buffer, index, {path: leaf for path, leaf in flat.items() if path not in small}


def specs(index: Mapping[str, Any]) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the leaves in an index."""
    return {
        split_path(name): jax.ShapeDtypeStruct(tuple(shape), _dtype(dtype))
        for name, (_, dtype, shape) in index.items()
    }


_dtype = cache(jnp.dtype)


def unpack(
    buffer: np.ndarray, index: Mapping[str, Any], paths: Iterable[Path], start: int = 0
) -> dict[Path, np.ndarray]:
    """Some leaves out of the bytes of all, or out of those from `start` on."""
    found = {}
    for path in paths:
        begin, name, shape = index[join_path(path)]
        begin, dtype = begin - start, _dtype(name)
        end = begin + math.prod(shape) * dtype.itemsize
        found[path] = buffer[begin:end].view(dtype).reshape(shape)
    return found


def span(index: Mapping[str, Any], paths: Iterable[Path]) -> tuple[int, int]:
    """The range of the bytes of some leaves within the packed bytes."""
    places = [index[join_path(path)] for path in paths]
    ends = (begin + math.prod(shape) * _dtype(name).itemsize for begin, name, shape in places)
    return min(place[0] for place in places), max(ends)


def file_size(size: int) -> int:
    """The target size of the files of a checkpoint with this number of bytes.

    A file is written when it is full. With Orbax's default of 2 GB, writing only starts
    when all data has been gathered.
    """
    return max(_FILE, size // _FILES)
