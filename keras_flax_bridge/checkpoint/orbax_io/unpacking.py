"""Long compressed chunks, unpacked part by part: tensorstore itself unpacks whole chunks only."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.orbax_io.api import tensorstore
from keras_flax_bridge.checkpoint.slices import PART

_WINDOW = 1 << 23  # bytes: how far back a chunk may refer; the reader keeps as many
_FRAME = 18  # bytes: the most that the header of a frame takes


def unpacked(array: Any, context: Any) -> Iterator[np.ndarray] | None:
    """The parts of an array of long compressed chunks, one-dimensional, in C order.

    Args:
        array: an open array of tensorstore.
        context: where its chunks are read.

    Returns:
        None where the chunks are not rows of the array one after another, or not packed by Zstandard in
        a way that can be read with little memory: tensorstore unpacks them whole.
    """
    named = _names(array.spec().to_json()["metadata"])
    rows = array.chunk_layout.read_chunk.shape
    if named is None or tuple(rows[1:]) != tuple(array.shape[1:]) or sys.byteorder != "little":
        return None
    store = tensorstore().KvStore.open(array.kvstore.spec(), context=context).result()
    keys = [named(i) for i in range(math.ceil(array.shape[0] / rows[0]))]
    if not all(_can_be_streamed(store, key) for key in keys):
        return None
    size = math.prod(rows) * array.dtype.numpy_dtype.itemsize
    return _parts(store, keys, size, array)


def _names(metadata: Any) -> Any:
    """What a chunk of rows is called, by its number; None where chunks are packed in another way."""
    if metadata.get("zarr_format") == 2:
        packed = (metadata["compressor"] or {}).get("id") == "zstd" and not metadata["filters"]
        plain = (
            metadata["order"] == "C" and isinstance(metadata["dtype"], str) and metadata["dtype"][0] != ">"
        )
        rest = [metadata["dimension_separator"] + "0"] * (len(metadata["shape"]) - 1)
        return (lambda i: f"{i}{''.join(rest)}") if packed and plain else None
    steps = [(codec["name"], codec.get("configuration", {})) for codec in metadata["codecs"]]
    plain = [name for name, _ in steps] == ["bytes", "zstd"] and steps[0][1].get("endian") != "big"
    encoding = metadata["chunk_key_encoding"]
    if not plain or steps[1][1].get("checksum") or encoding["name"] != "default":
        return None
    between = encoding.get("configuration", {}).get("separator", "/")
    return lambda i: between.join(["c", str(i), *["0"] * (len(metadata["shape"]) - 1)])


class _Chunk:
    """The stored bytes of a chunk, read in turn."""

    def __init__(self, store: Any, key: str):
        self._store, self._key, self._at = store, key, 0

    def read(self, size: int) -> bytes:
        try:
            found = self._part(self._at + size)
        except ValueError:  # fewer are left
            found = self._part(None)
        self._at += len(found)
        return found

    def _part(self, end: int | None) -> bytes:
        return bytes(self._store.read(self._key, byte_range=slice(self._at, end)).result().value)


def _can_be_streamed(store: Any, key: str) -> bool:
    try:
        frame = zstandard.get_frame_parameters(_Chunk(store, key).read(_FRAME))
    except (zstandard.ZstdError, ValueError):  # not there, or damaged: tensorstore says what is wrong
        return False
    return 0 < frame.window_size <= _WINDOW


def _parts(store: Any, keys: list[str], size: int, array: Any) -> Iterator[np.ndarray]:
    dtype = array.dtype.numpy_dtype
    left = math.prod(array.shape) * dtype.itemsize  # the last chunk may go on after the last row
    for key in keys:
        source: Any = _Chunk(store, key)
        with zstandard.ZstdDecompressor().stream_reader(source, read_size=PART) as stream:
            for start in range(0, min(size, left), PART):
                yield np.frombuffer(_exactly(stream, min(PART, min(size, left) - start)), dtype)
                give_back()
            if left >= size and stream.read(1):
                raise ValueError("a chunk that goes on after its end")
        left -= size


def _exactly(stream: Any, size: int) -> bytes:
    """So many bytes of a chunk.

    Raises:
        ValueError: if it holds fewer.
    """
    found = bytearray()
    while len(found) < size and (more := stream.read(size - len(found))):
        found += more
    if len(found) != size:
        raise ValueError(f"a chunk that ends {size - len(found):,} bytes too early")
    return bytes(found)
