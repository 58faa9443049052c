"""HDF5 files: `.weights.h5`, and the member of that kind in a `.keras` file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import h5py
import numpy as np

from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.checkpoint.guards.limits import refusal, require_ratio
from keras_flax_bridge.errors import shortened

# the dtypes of Keras's variables as h5py reads them; V1 and V2 are bytes, as which it writes the dtypes
# that HDF5 lacks, such as bfloat16
_KINDS = {
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128", "bool", "void8", "void16"),
}
# the attribute with the name of such a dtype, and the item size of each
_MARK = "dtype"
_MARKED = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int4": 1, "uint4": 1}
DEFLATE, SHUFFLE, FLETCHER = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32
_FILTERS = (SHUFFLE, DEFLATE, FLETCHER)  # in this order, as h5py applies them, each at most once
_LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}


class Array(NamedTuple):
    """The declared shape and dtype of an array.

    Attributes:
        shape: its shape.
        dtype: the name of its dtype, as marked beside the array if there is a mark.
        width: the bytes of an element.
        rows: how many rows a chunk has; 1 for an array in one piece.
        chunk: the bytes of a chunk; 0 for an array in one piece.
        filters: the filters of its chunks, in order.
        declared: its size in memory, in bytes.
        stored: its size in the file, in bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    width: int
    rows: int
    chunk: int
    filters: tuple[int, ...]
    declared: int
    stored: int


def arrays(path: FilePath, file: h5py.File, size: int, stored: int) -> dict[str, Array]:
    """The arrays in a file by name, after checking all declarations; no array is read.

    Args:
        path: the name of the file in errors.
        file: the file.
        size: its bytes.
        stored: its size on disk, if it is compressed as a whole.

    Raises:
        CheckpointError: if it contains something that Keras never writes, or declares more than is there.
    """
    found = {name: _array(path, name, item, size) for name, item in _datasets(path, file)}
    taken = sum(array.stored for array in found.values())
    if taken > size:
        raise refusal(path, "all arrays", f"{taken:,} bytes in a file of {size:,}", "bytes of their own")
    require_ratio(path, "all arrays", sum(array.declared for array in found.values()), stored)
    return found


def _datasets(path: FilePath, file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Every dataset below the root by its name; each object of the file is met once."""
    waiting: list[tuple[str, int, Any]] = [("", 0, file.id)]
    seen = {h5py.h5o.get_info(file.id).addr}
    length = 0
    while waiting:
        parent, depth, group = waiting.pop()
        if group.get_num_objs() + len(seen) > limits.OBJECTS:
            raise refusal(path, parent, "too many members", f"at most {limits.OBJECTS:,} in the file")
        for raw in [*group]:
            name = _joined(path, parent, raw)
            length += len(name)
            if depth >= limits.DEPTH or length > limits.NAMES:
                raise refusal(path, name, "groups or names without end", f"at most {limits.DEPTH} levels")
            item = _opened(path, name, group, raw, seen)
            if isinstance(item, h5py.h5g.GroupID):
                waiting.append((name, depth + 1, item))
            else:
                yield name, item


def _joined(path: FilePath, parent: str, raw: bytes) -> str:
    name = raw.decode("utf-8", "surrogateescape")
    if limits.is_odd(name) or name in ("", ".", "..") or "/" in name:
        raise refusal(path, f"{parent}/{name}", "this name", "a name that Keras gives")
    return f"{parent}/{name}" if parent else name


def _opened(path: FilePath, name: str, group: Any, raw: bytes, seen: set[Any]) -> Any:
    """A group or a dataset, under the one name that it has."""
    kind = group.links.get_info(raw).type
    if kind != h5py.h5l.TYPE_HARD:
        got = _LINKS.get(kind, "a link of a user's kind")
        raise refusal(path, name, got, "a group or an array in this file")
    item = h5py.h5o.open(group, raw)
    if not isinstance(item, (h5py.h5g.GroupID, h5py.h5d.DatasetID)):
        raise refusal(path, name, f"a {type(item).__name__}", "a group or an array")
    address = h5py.h5o.get_info(item).addr
    if address in seen:
        raise refusal(path, name, "an object that has another name as well", "one name for each object")
    seen.add(address)
    return item


def _array(path: FilePath, name: str, item: Any, size: int) -> Array:
    """The checked declaration of a dataset; its data is not read."""
    plist = item.get_create_plist()
    layout = plist.get_layout()
    if plist.get_external_count():
        raise refusal(path, name, "an array whose bytes are in another file", "bytes in this file")
    if layout == h5py.h5d.VIRTUAL:
        raise refusal(path, name, "a virtual array, made of others", "bytes in this file")
    space = item.get_space()
    if space.get_simple_extent_type() not in (h5py.h5s.SIMPLE, h5py.h5s.SCALAR):
        raise refusal(path, name, "an array without a shape", "a shape")
    shape = space.get_simple_extent_dims()
    kind, width = _dtype(path, name, item)
    declared, stored = math.prod(shape) * width, item.get_storage_size()
    filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
    if layout == h5py.h5d.CHUNKED:
        chunk = math.prod(plist.get_chunk()) * width
        declared = max(declared, _of_chunks(path, name, item, plist.get_chunk(), width, declared))
        _require_filters(path, name, filters, declared, stored)
        return Array(shape, kind, width, plist.get_chunk()[0], chunk, filters, declared, stored)
    _require_stored(path, name, item, declared, stored, size)
    return Array(shape, kind, width, 1, 0, (), declared, stored)


def _dtype(path: FilePath, name: str, item: Any) -> tuple[str, int]:
    """The name of a dtype, and its bytes."""
    try:
        found = item.dtype
    except TypeError as error:  # of h5py, for what numpy lacks
        raise refusal(path, name, f"a dtype that numpy lacks ({error})", "a dtype of Keras's") from error
    width = item.get_type().get_size()
    if found.name not in _KINDS or found.names or found.subdtype or found.itemsize != width:
        raise refusal(path, name, f"dtype {shortened(str(found))}", "a dtype of Keras's")
    mark = _mark(path, name, item)
    if mark is None:
        return found.newbyteorder("=").str if found.kind == "V" else found.name, width
    if found.kind != "V" or _MARKED.get(mark) != width:
        raise refusal(path, name, f"{mark!r} for {width} bytes", f"one of {', '.join(_MARKED)}")
    return mark, width


def _mark(path: FilePath, name: str, item: Any) -> str | None:
    """The dtype that is stored as text beside an array, or None."""
    dataset = h5py.Dataset(item)
    if _MARK not in dataset.attrs:
        return None
    kept = dataset.attrs.get_id(_MARK)
    if (
        kept.shape != ()
        or kept.get_storage_size() > limits.NAME
        or h5py.check_string_dtype(kept.dtype) is None
    ):
        raise refusal(path, name, f"an attribute {_MARK!r} that is not a text", "the name of a dtype")
    text = dataset.attrs[_MARK]
    return shortened(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))


def _require_stored(path: FilePath, name: str, item: Any, declared: int, stored: int, size: int) -> None:
    """Checks that all bytes of an array in one piece are in the file."""
    offset = item.get_offset()  # None for a small one inside its header
    if stored != declared or (offset is not None and offset + stored > size):
        got = f"{declared:,} bytes declared, {stored:,} stored, in a file of {size:,}"
        raise refusal(path, name, got, "as many bytes stored as declared")


def _of_chunks(
    path: FilePath, name: str, item: Any, chunk: tuple[int, ...], width: int, declared: int
) -> int:
    """The bytes of all chunks as they are in memory, after checking that all are there."""
    shape = item.shape
    wanted: int = math.prod(-(-n // part) for n, part in zip(shape, chunk, strict=True))
    size = math.prod(chunk) * width
    if size > max(declared, limits.CHUNK):
        raise refusal(path, name, f"chunks of {size:,} bytes", f"at most the {declared:,} of the array")
    if item.get_num_chunks() != wanted:
        got = f"{item.get_num_chunks():,} of {wanted:,} chunks"
        raise refusal(path, name, got, "every chunk stored")
    return wanted * size


def _require_filters(path: FilePath, name: str, filters: tuple[int, ...], declared: int, stored: int) -> None:
    if filters != tuple(kind for kind in _FILTERS if kind in filters):
        raise refusal(path, name, f"the filters {[*filters]}", "gzip, shuffle, fletcher32, or none")
    if DEFLATE in filters:
        require_ratio(path, name, declared, stored)
    elif stored < declared:
        got = f"{declared:,} bytes declared, {stored:,} stored"
        raise refusal(path, name, got, "as many bytes stored as declared")


def value(item: h5py.Dataset, array: Array, where: Any = ()) -> np.ndarray:
    """An array, or a part of it, in the byte order of this machine."""
    found = np.asarray(item[where])
    native = found.astype(found.dtype.newbyteorder("="), copy=False)
    return native.view(array.dtype) if found.dtype.kind == "V" else native
