"""Compressed chunks of arrays: HDF5 unpacks a chunk to any size, so each is measured first."""

from __future__ import annotations

import zlib
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.checkpoint.guards.hdf5 import DEFLATE, FLETCHER, Array
from keras_flax_bridge.checkpoint.guards.limits import refusal

_SUM = 4  # bytes of a Fletcher checksum


def require_unpacked_sizes(path: FilePath, name: str, item: Any, array: Array) -> None:
    """Checks that each chunk of an array unpacks to the size of a chunk; it is unpacked in parts.

    Raises:
        CheckpointError: if one does not.
    """
    if DEFLATE not in array.filters:
        return
    sums = array.filters.index(FLETCHER) if FLETCHER in array.filters else None
    deflate = array.filters.index(DEFLATE)

    def check(info: Any) -> None:
        skipped = info.filter_mask
        if info.size > 2 * array.chunk + limits.NAME:
            raise _other(path, name, array)
        _, packed = item.id.read_direct_chunk(info.chunk_offset)
        packed = packed[:-_SUM] if sums is not None and not skipped >> sums & 1 else packed
        size = len(packed) if skipped >> deflate & 1 else _unpacked_size(packed, array.chunk)
        if size != array.chunk:
            raise _other(path, name, array)

    item.id.chunk_iter(check)


def _unpacked_size(packed: bytes, most: int) -> int:
    """The inflated size of deflated bytes; some number above `most` if it is larger."""
    stream, size, rest = zlib.decompressobj(), 0, packed
    try:
        while size <= most and not stream.eof:
            part = stream.decompress(rest, limits.MEBI)
            rest = stream.unconsumed_tail
            size += len(part)
            if not part and not rest:
                break
    except zlib.error:
        return -1
    return size if stream.eof or size > most else -1


def _other(path: FilePath, name: str, array: Array) -> Exception:
    return refusal(path, name, "a chunk that unpacks to another size", f"chunks of {array.chunk:,} bytes")
