"""A large array of a tree, one stored chunk after another: Orbax itself reads whole arrays only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_flax_bridge import _paths
from keras_flax_bridge._orbax.api import FilePath, tensorstore
from keras_flax_bridge._slices import GROUP, slices

_DRIVERS = ("zarr3", "zarr")  # the formats of arrays in Orbax's trees
_PLAIN = {"bytes", "sharding_indexed"}  # codecs of zarr3 that compress nothing
_MANIFEST = "manifest.ocdbt"  # the file of the database in which the arrays of a tree usually are


def opened(item: FilePath, place: _paths.Path, spec: Any) -> Any:
    """An array of the tree in a folder; None where Orbax stores arrays in another way.

    Its context reads one chunk at a time and keeps none; files are mapped, so that what was read is given
    back to the system at once.
    """
    name = ".".join(place) + "/"
    file = {"driver": "file", "path": f"{item}/"}
    store = {"driver": "ocdbt", "base": file} if (item / _MANIFEST).is_file() else file
    path = name if store is not file else f"{item}/{name}"
    context = {"cache_pool": {"total_bytes_limit": 0}, "file_io_mode": {"mode": "memmap"}} | {
        kind: {"limit": 1} for kind in ("file_io_concurrency", "data_copy_concurrency")
    }
    for driver in _DRIVERS:
        asked = {"driver": driver, "kvstore": {**store, "path": path}, "context": context}
        try:
            found = tensorstore().open(asked, open=True, read=True).result()
            alike = tuple(found.shape) == spec.shape and found.dtype.numpy_dtype == np.dtype(spec.dtype)
        except Exception:  # of many kinds; whoever asked reads the array by Orbax, which says what is wrong
            continue
        if alike:
            return found
    return None


def pieces(array: Any) -> Iterator[np.ndarray]:
    """The parts of an open array, in C order.

    A compressed chunk is a part where it can be: for less of it, it would be unpacked several times.
    """
    chunk = array.chunk_layout.read_chunk.shape or (1,) * array.ndim
    most, step = GROUP // array.dtype.numpy_dtype.itemsize, 1
    if not _is_plain(array.codec.to_json()):
        most = max(most, math.prod(chunk))
        step = chunk[0] if chunk[0] * math.prod(array.shape[1:]) <= most else 1
    for where in slices(tuple(array.shape), most, step):
        yield array[where].read().result()


def _is_plain(codec: Any) -> bool:
    """Whether chunks are stored as they are in memory, so that a part of one can be read."""
    steps = codec.get("codecs", [])
    inner = [step for one in steps for step in one.get("configuration", {}).get("codecs", [])]
    return codec.get("compressor") is None and {one["name"] for one in (*steps, *inner)} <= _PLAIN
