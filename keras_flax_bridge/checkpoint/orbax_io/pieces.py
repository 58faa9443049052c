"""A large array of a tree, one stored chunk after another: Orbax itself reads whole arrays only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.orbax_io.api import LEAVES, FilePath, tensorstore
from keras_flax_bridge.checkpoint.orbax_io.declared import MANIFEST
from keras_flax_bridge.checkpoint.orbax_io.unpacking import unpacked
from keras_flax_bridge.checkpoint.slices import PART, slices
from keras_flax_bridge.tree.paths import Path

_DRIVERS = ("zarr3", "zarr")  # the formats of arrays in Orbax's trees
_PLAIN = {"bytes", "sharding_indexed"}  # codecs of zarr3 that compress nothing


def _has_zeros(item: FilePath) -> bool:
    """Whether chunks of zeros are stored as well."""
    return bool(json.loads((item / LEAVES).read_text()).get("store_array_data_equal_to_fill_value"))


@cache
def _context() -> Any:
    """Reads one chunk at a time and keeps none.

    Files are mapped, so that what was read is given back at once. There is one for all arrays: each has
    threads of its own, and the C library keeps memory for each thread.
    """
    one = {"limit": 1}
    settings = {"cache_pool": {"total_bytes_limit": 0}, "file_io_mode": {"mode": "memmap"}}
    return tensorstore().Context({**settings, "file_io_concurrency": one, "data_copy_concurrency": one})


def opened(item: FilePath, place: Path, spec: Any) -> Any:
    """An array of the tree in a folder; None where Orbax stores arrays in another way."""
    name = ".".join(place) + "/"
    file = {"driver": "file", "path": f"{item}/"}
    store = {"driver": "ocdbt", "base": file} if (item / MANIFEST).is_file() else file
    path = name if store is not file else f"{item}/{name}"
    for driver in _DRIVERS:
        try:
            # zeros may be left out where the writer said so; else what is not there is lost
            asked: dict[str, Any] = {"kvstore": {**store, "path": path}}
            asked["fill_missing_data_reads"] = not _has_zeros(item)
            found = (
                tensorstore()
                .open({"driver": driver, **asked}, open=True, read=True, context=_context())
                .result()
            )
            alike = tuple(found.shape) == spec.shape and found.dtype.numpy_dtype == np.dtype(spec.dtype)
        except Exception:  # of many kinds; whoever asked reads the array by Orbax, which says what is wrong
            continue
        if alike:
            return found
    return None


def pieces(array: Any) -> Iterator[np.ndarray]:
    """The parts of an open array, in C order.

    A compressed chunk that can't be unpacked in parts is one where it can be: for less of it, it would be
    unpacked several times.
    """
    chunk = array.chunk_layout.read_chunk.shape or (1,) * array.ndim
    most, step = PART // array.dtype.numpy_dtype.itemsize, 1
    if not _is_plain(array.codec.to_json()):
        parts = unpacked(array, _context()) if math.prod(chunk) > most else None
        if parts is not None:
            yield from parts
            return
        most = max(most, math.prod(chunk))
        step = chunk[0] if chunk[0] * math.prod(array.shape[1:]) <= most else 1
    for where in slices(tuple(array.shape), most, step):
        yield array[where].read().result()
        give_back()


def _is_plain(codec: Any) -> bool:
    """Whether chunks are stored as they are in memory, so that a part of one can be read."""
    steps = codec.get("codecs", [])
    inner = [step for one in steps for step in one.get("configuration", {}).get("codecs", [])]
    return codec.get("compressor") is None and {one["name"] for one in (*steps, *inner)} <= _PLAIN
