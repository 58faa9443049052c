"""`.safetensors` files: the header, compared with the bytes of the file."""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from keras_flax_bridge.checkpoint.guards import limits, texts
from keras_flax_bridge.checkpoint.guards.limits import refusal
from keras_flax_bridge.errors import shortened
from keras_flax_bridge.tree.untrusted.texts import require_regular

DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
}
_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "complex64": 64, "bool": 8}
_LENGTH = 8  # bytes of the number with which a file begins: how long its header is
_METADATA = "__metadata__"
_WHOLE = "a whole safetensors file, of dtypes that numpy and jax have in common"


class Tensor(NamedTuple):
    """An array of a file: shape, dtype, and where its bytes begin and end in the file."""

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


class Tensors(NamedTuple):
    """The arrays of a file by name, and its metadata texts."""

    arrays: dict[str, Tensor]
    metadata: dict[str, str]


def tensors(path: FilePath) -> Tensors:
    """Checks the header of a file, and returns its declarations; no array is read.

    Raises:
        CheckpointError: if the header is not one, or is not that of the bytes that follow.
    """
    require_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if size < _LENGTH or length > min(limits.CONFIG, size - _LENGTH):
            got = f"a header of {length:,} bytes in a file of {size:,}"
            raise refusal(path, "the header", got, f"at most {limits.CONFIG:,}, and as many as there are")
        header = texts.parsed(path, "the header", file.read(length))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(path, _METADATA, "what is not text", "texts by name")
    start = _LENGTH + length
    found = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    _require_all(path, found, start, size)
    return Tensors(found, metadata)


def _tensor(path: FilePath, name: str, entry: Any, start: int) -> Tensor:
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets, kind = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    whole = _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if not whole or dtype is None or limits.is_odd(name):
        raise refusal(path, name, f"dtype {shortened(str(kind))}, or no sizes", _WHOLE)
    width = _BITS.get(dtype) or int(dtype.lstrip("uint"))
    if math.prod(shape) * width != 8 * (offsets[1] - offsets[0]):
        raise refusal(path, name, f"{offsets[1] - offsets[0]:,} bytes for {dtype}{shape}", _WHOLE)
    return Tensor(tuple(shape), dtype, start + offsets[0], start + offsets[1])


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in found)


def _require_all(path: FilePath, found: dict[str, Tensor], start: int, size: int) -> None:
    """Checks that the arrays are the rest of the file, and share no bytes."""
    at = start
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise refusal(path, name, "bytes of another array, or a gap before", _WHOLE)
        at = tensor.end
    if at != size:
        raise refusal(path, "the arrays", f"{at:,} bytes declared, {size:,} in the file", _WHOLE)
