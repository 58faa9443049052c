"""Checksums of leaves: written beside them, compared after they were read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from keras_flax_bridge import _paths


def checksum(leaf: Any) -> int | None:
    """CRC-32 of the bytes of a leaf; None where this process doesn't hold all of them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            return None
        leaf = leaf.addressable_data(0)
    if not hasattr(leaf, "dtype"):
        return zlib.crc32(repr(leaf).encode())
    array = np.ascontiguousarray(np.asarray(leaf))
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def fingerprint(tree: Any) -> int:
    """One number for all leaves of a tree."""
    return zlib.crc32(repr([checksum(leaf) for leaf in jax.tree.leaves(tree)]).encode())


def checksums(flat: Mapping[_paths.Path, Any]) -> dict[str, int]:
    """The checksum of every leaf that has one, by its path as text."""
    found = {_paths.join(path): checksum(leaf) for path, leaf in flat.items()}
    return {path: value for path, value in found.items() if value is not None}


def damaged(flat: Mapping[_paths.Path, Any], written: Mapping[str, int]) -> dict[str, str]:
    """What differs between leaves that were read and the checksums that were written, by path."""
    read = checksums({path: leaf for path, leaf in flat.items() if _paths.join(path) in written})
    return {
        path: f"checksum {value:08x}, written was {written[path]:08x}"
        for path, value in read.items()
        if value != written[path]
    }
