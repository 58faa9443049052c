"""The packed layout: small leaves lie together in one array of bytes, by an index in the metadata.

Orbax's cost is per leaf, some milliseconds each; a state of many small leaves is written and read
many times faster as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge import _paths

LIMIT = 1 << 16  # bytes: a leaf of this size or more is an array of its own

Index = dict[str, tuple[int, str, tuple[int, ...]]]  # path: where it begins, dtype, shape


def _is_small(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype") or np.size(leaf) * jnp.dtype(leaf.dtype).itemsize >= LIMIT:
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_replicated


def here(leaf: Any) -> Any:
    """A leaf that all processes hold, as this one has it."""
    other = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return leaf.addressable_data(0) if other else leaf


def pack(flat: Mapping[_paths.Path, Any]) -> tuple[np.ndarray, Index, _paths.Flat]:
    """The bytes of all small leaves, where each lies in them, and the leaves that are not small."""
    small = {path: leaf for path, leaf in flat.items() if _is_small(leaf)}
    rest = {path: leaf for path, leaf in flat.items() if path not in small}
    host = jax.device_get([here(leaf) for leaf in small.values()])  # one transfer for all
    parts = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in host]
    begins = np.cumsum([0, *(part.size for part in parts)]).tolist()
    index: Index = {
        _paths.join(path): (begin, str(leaf.dtype), tuple(leaf.shape))
        for path, leaf, begin in zip(small, host, begins, strict=False)
    }
    return np.concatenate([*parts, np.zeros(1, np.uint8)]), index, rest  # Orbax stores no empty array


def specs(index: Mapping[str, Any]) -> dict[_paths.Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the leaves in an index."""
    return {_paths.split(name): _spec(entry) for name, entry in index.items()}


def _spec(entry: Any) -> jax.ShapeDtypeStruct:
    _, dtype, shape = entry
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def unpack(
    buffer: np.ndarray, index: Mapping[str, Any], paths: Iterable[_paths.Path]
) -> dict[_paths.Path, np.ndarray]:
    """Some leaves out of the bytes of all."""
    found = {}
    for path in paths:
        entry = index[_paths.join(path)]
        spec = _spec(entry)
        size = int(np.prod(spec.shape)) * spec.dtype.itemsize
        found[path] = buffer[entry[0] : entry[0] + size].view(spec.dtype).reshape(spec.shape)
    return found
