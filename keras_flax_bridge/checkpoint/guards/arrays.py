"""Arrays in Orbax's trees: what one declares, checked before the storage below Orbax allocates it.

That storage reads whole chunks: a chunk of 16 GB in an array of six numbers takes 16 GB, out of a
file of some hundred bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from keras_flax_bridge.checkpoint.guards.limits import MEBI, RATIO
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.schema import Malformed

# Orbax writes the first four. Blosc is rejected: its decoder allocates the size that a chunk declares.
_CODECS = frozenset({"zstd", "bytes", "sharding_indexed", "crc32c", "gzip", "transpose"})
# What it does not write is unpacked whole: the storage below Orbax stops at the end of a chunk, however much
# more is packed in one, but the chunk itself may be large. Chunks of Orbax's own are read in parts.
_OTHERS = _CODECS - {"zstd", "bytes", "sharding_indexed", "crc32c"}
_WHOLE = 64 * MEBI  # bytes of a chunk that is unpacked whole
_MOST_CODECS = 16  # of one array; shards of shards unpack one another
_WIDEST = 16  # bytes of a number
# Chunks may be larger than their array only below this size.
_CHUNK = MEBI
# Below this size of all arrays together, the ratio to the bytes on disk does not matter. Zeros compress
# 30,000 to 1, but the weights of a model are not all zeros.
_FLOOR = 256 * MEBI


def declared_bytes(found: Any, where: str) -> int:
    """The bytes that the metadata of an array, a `.zarray` or a `zarr.json`, declare.

    Raises:
        CorruptCheckpointError: if they are not what Orbax writes, or if chunks are larger than the array.
    """
    try:
        return _declared(found)
    except Malformed as fault:
        raise CorruptCheckpointError(
            where,
            got=f"{fault.field}: {fault.got}",
            expected=fault.expected,
            fix="Nothing was read. The checkpoint is damaged, or not as Orbax writes it: take another.",
        ) from fault


def _declared(found: Any) -> int:
    if not isinstance(found, dict):
        raise Malformed("the metadata", schema.said(found), "an object")
    sizes = _shape(found.get("shape"), "shape")
    field, chunk = _chunk(found)
    if len(chunk) != len(sizes):
        raise Malformed(field, f"{len(chunk)} axes", f"{len(sizes)}, as shape has")
    width = _width(found.get("dtype", found.get("data_type")))
    declared, unpacked = math.prod(sizes) * width, math.prod(chunk) * width
    _require_codecs(found, unpacked)
    if unpacked > max(declared, _CHUNK):
        got = f"{unpacked:,} bytes each, in an array of {declared:,}"
        raise Malformed(field, got, "chunks no larger than the array")
    return declared


def _shape(found: Any, field: str) -> list[int]:
    schema.shape(found, field)
    return list(found)


def _chunk(found: Mapping[str, Any]) -> tuple[str, list[int]]:
    """The name of the field of the shape of a chunk, in either version of the format, and that shape."""
    field = "chunk_grid" if "chunk_grid" in found else "chunks"
    chunk = found.get(field)
    for below in ("configuration", "chunk_shape") if field == "chunk_grid" else ():
        chunk = chunk.get(below) if isinstance(chunk, dict) else None
    return field, _shape(chunk, field)


def _require_codecs(found: Mapping[str, Any], unpacked: int) -> None:
    """Checks that chunks of so many bytes are packed by codecs that unpack no more than that."""
    old = [found.get("compressor"), *_listed(found.get("filters"))]
    names = (step.get("id") if isinstance(step, dict) else step for step in old if step is not None)
    pending: list[tuple[Any, Any]] = [*((name, {}) for name in names), *_steps(found.get("codecs"))]
    for count in range(_MOST_CODECS + 1):
        if not pending:
            return
        name, settings = pending.pop()
        if not isinstance(name, str) or name not in _CODECS or count == _MOST_CODECS:
            raise Malformed("codecs", schema.said(name), f"a few of {', '.join(sorted(_CODECS))}")
        if name in _OTHERS and unpacked > _WHOLE:
            got = f"{name} in chunks of {unpacked:,} bytes"
            raise Malformed("codecs", got, f"{name} in chunks of at most {_WHOLE:,} bytes, or zstd")
        inner = settings if isinstance(settings, dict) else {}
        pending += _steps(inner.get("codecs")) + _steps(inner.get("index_codecs"))


def _steps(codecs: Any) -> list[tuple[Any, Any]]:
    """Names and settings of codecs, which may be given by name only."""
    return [
        (step.get("name"), step.get("configuration")) if isinstance(step, dict) else (step, {})
        for step in _listed(codecs)
    ]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [] if found is None else [found]


def _width(dtype: Any) -> int:
    """The bytes of one number; the most that there are where the name doesn't tell."""
    digits = re.fullmatch(r"([<>|]?)[a-z]+([0-9]{1,3})\w*", dtype) if isinstance(dtype, str) else None
    if digits is None:
        return 1 if dtype == "bool" else _WIDEST
    size = int(digits[2])
    return min(_WIDEST, size if digits[1] else max(1, size // 8))


def require_stored(where: str, declared: int, stored: int) -> None:
    """Checks what all arrays of a checkpoint declare against the bytes on disk.

    Raises:
        CheckpointError: if it is more than `RATIO` times as much, and more than memory has room for anyway.
    """
    if declared > _FLOOR and declared > RATIO * stored:
        raise CheckpointError(
            where,
            got=f"arrays of {declared:,} bytes in files of {stored:,}",
            expected=f"at most {RATIO} declared bytes for each stored byte",
            fix="Nothing was read. If you trust the checkpoint, restore it into arrays of your own: "
            "kfb.restore(path, like).",
        )
