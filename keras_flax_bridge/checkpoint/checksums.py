"""Checksums of leaves: stored beside them, compared after reading."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.tree.paths import Flat, Path, join_path

_LARGE = 1 << 18  # bytes: from this size on, another thread is worth starting
_PART = 1 << 27  # bytes that are compared at a time
_ROW = 1 << 12  # bytes: a page of memory, the unit in which data is lost


def on_host(flat: Mapping[Path, Any]) -> Flat:
    """The fully addressable leaves, in host memory; leaves that are not arrays are unchanged."""
    there = {path: _here(leaf) for path, leaf in flat.items() if not _is_elsewhere(leaf)}
    if jax.default_backend() != "cpu":
        for leaf in there.values():  # all transfers at once
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
    return {path: np.asarray(leaf) if hasattr(leaf, "dtype") else leaf for path, leaf in there.items()}


def _is_elsewhere(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def _here(leaf: Any) -> Any:
    """The local value of a leaf that is replicated over processes."""
    shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return leaf.addressable_data(0) if shared else leaf


def checksum(leaf: Any) -> int:
    """The CRC-32 of the bytes of a numpy array, or of the text of another leaf.

    For large arrays it is the CRC-32 of sums, as in a product code, which runs several times faster:
    the sum of every row of 512 words, then of every column, modulo 2**64. One changed word changes
    a sum of both kinds; rows that change places, or are those of another array, change either.
    """
    if not isinstance(leaf, np.ndarray):
        return zlib.crc32(repr(leaf).encode())
    if not _is_large(leaf):
        return zlib.crc32(leaf.tobytes())
    total = Running()
    total.add(np.ascontiguousarray(leaf))
    return total.value()


class Running:
    """The checksum of a large array, computed from parts in C order."""

    def __init__(self) -> None:
        self._rows = 0  # the CRC-32 of the sums of the rows so far
        self._columns = np.zeros(_ROW // 8, "<u8")
        self._rest = np.empty(0, np.uint8)  # less than a row

    def add(self, part: np.ndarray) -> None:
        """Adds the next bytes."""
        content = part.reshape(-1).view(np.uint8)
        begin = min(-self._rest.size % _ROW, content.size)
        if self._rest.size:  # the row that was begun
            self._rest = np.concatenate([self._rest, content[:begin]])
            content = content[begin:]
            if self._rest.size < _ROW:
                return
            self._add_rows(self._rest)
        whole = content.size // _ROW * _ROW
        self._add_rows(content[:whole])
        self._rest = content[whole:].copy()

    def _add_rows(self, content: np.ndarray) -> None:
        words = content.view("<u8").reshape(-1, _ROW // 8)
        self._rows = zlib.crc32(words.sum(1).data, self._rows)
        self._columns += words.sum(0)

    def value(self) -> int:
        """The checksum of all bytes that were added."""
        return zlib.crc32(self._rest.data, zlib.crc32(self._columns.data, self._rows))


def checksums(host: Mapping[Path, Any]) -> dict[str, int]:
    """The checksum of every leaf, by its path as text; `host` is what `on_host` gives."""
    with ThreadPoolExecutor() as pool:  # numpy and zlib let other threads run
        large = {path: pool.submit(checksum, leaf) for path, leaf in host.items() if _is_large(leaf)}
        small = {path: checksum(leaf) for path, leaf in host.items() if path not in large}
        return {join_path(p): large[p].result() if p in large else small[p] for p in host}


def fingerprint(tree: Any) -> int:
    """One number for all leaves of a tree."""
    leaves = enumerate(jax.tree.leaves(tree))
    return zlib.crc32(repr(checksums(on_host({(str(i),): leaf for i, leaf in leaves}))).encode())


def _is_large(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.nbytes >= _LARGE


def damaged(flat: Flat, written: Mapping[str, int]) -> dict[str, str]:
    """The leaves that do not match their stored checksums, by path, each with the reason."""
    known = {path: leaf for path, leaf in flat.items() if join_path(path) in written}
    return {
        path: difference(value, written[path])
        for part in _parts(known)
        for path, value in checksums(on_host({p: _alias(leaf) for p, leaf in part.items()})).items()
        if value != written[path]
    }


def difference(read: int, written: int) -> str:
    """Describes two checksums that differ."""
    return f"checksum {read:08x}, written was {written:08x}"


def _parts(flat: Flat) -> Iterator[Flat]:
    """Groups of leaves, so that host memory never holds a second copy of all."""
    part: Flat = {}
    size = 0
    for path, leaf in flat.items():
        part[path] = leaf
        size += getattr(leaf, "nbytes", 0)
        if size >= _PART:
            yield part
            part, size = {}, 0
    yield part


def _alias(leaf: Any) -> Any:
    """Another array of the same buffers: jax keeps what numpy copied of an array as long as that lives.

    For a leaf that is completely in host memory, numpy copies nothing.
    """
    if not isinstance(leaf, jax.Array) or _is_elsewhere(leaf):
        return leaf
    devices: set[Any] = leaf.sharding.device_set
    if len(devices) == 1 and next(iter(devices)).platform == "cpu":
        return leaf
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
