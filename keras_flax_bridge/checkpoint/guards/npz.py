"""`.npz` files: a zip archive of numpy's arrays, of which the headers are read; nothing is unpickled."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_flax_bridge.checkpoint.guards.archive import Archive, archive
from keras_flax_bridge.checkpoint.slices import GROUP
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, said, shortened

_SUFFIX = ".npy"  # of a member
_KINDS = "biufc"  # of dtypes: no objects, texts, dates, records
_HEADER = 10_000  # bytes: numpy's own limit for what it parses
_NUMBERS = "an array of numbers, as numpy.savez writes it"
_FIX = "Nothing was read. Write the file again with numpy.savez, of arrays with numeric dtypes."
_LOST = (
    "numpy's format has no name for bfloat16 and float8: write such arrays as float32, or as .safetensors."
)


class Numbers(NamedTuple):
    """An array of an archive: the member, its shape, dtype and order, and where its elements begin."""

    member: str
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    fortran: bool
    begin: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in the byte order of this machine."""
        return self.stored.newbyteorder("=")


class Npz(NamedTuple):
    """An open archive, whose headers were checked."""

    archive: Archive
    arrays: dict[str, Numbers]

    def read(self, name: str, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        array = self.arrays[name]
        whole = count == math.prod(array.shape)
        if array.fortran and not whole:
            found = self.read(name, 0, math.prod(array.shape)).reshape(-1)
            return found[begin : begin + count]
        with self.archive.file(array.member) as file:
            file.seek(array.begin + begin * array.stored.itemsize)
            found = _elements(file, array.stored, count)
        found = found.astype(array.dtype, copy=False)
        if not whole:
            return found
        return found.reshape(array.shape[::-1]).T if array.fortran else found.reshape(array.shape)


@contextlib.contextmanager
def npz(path: FilePath, *, values: bool = False) -> Iterator[Npz]:
    """The arrays of a file by name.

    Args:
        path: the file.
        values: whether arrays will be read: then the checksums of the archive are compared first.

    Raises:
        CheckpointError: if it is not such a file, or holds what is not an array of numbers.
        CorruptCheckpointError: if a checksum of the archive differs.
    """
    with archive(path) as opened:
        if values:
            opened.require_whole()
        arrays = {name.removesuffix(_SUFFIX): _checked(opened, name) for name in opened.members}
        if len(arrays) < len(opened.members):
            raise _refusal(path, "the archive", "two members of one name", "each name once")
        yield Npz(opened, arrays)


def _checked(opened: Archive, name: str) -> Numbers:
    """The header of a member, compared with its size."""
    size = opened.members[name].file_size
    if not name.endswith(_SUFFIX):
        raise _refusal(opened.path, name, f"a member without the suffix {_SUFFIX}", _NUMBERS)
    with opened.file(name) as file:
        try:
            shape, fortran, dtype = _header(file)
        except CheckpointError:
            raise
        except Exception as error:  # what numpy makes of a header: ValueError, TypeError, SyntaxError, ...
            raise _refusal(opened.path, name, f"a header with {said(error)}", _NUMBERS) from error
        begin = file.tell()
    if dtype.kind not in _KINDS or dtype.hasobject:
        fix = _LOST if dtype.kind == "V" else _FIX
        raise _refusal(opened.path, name, f"dtype {shortened(str(dtype))}", _NUMBERS, fix)
    if any(type(n) is not int or n < 0 for n in shape) or begin + math.prod(shape) * dtype.itemsize != size:
        raise _refusal(opened.path, name, f"{size - begin:,} bytes for {dtype}{list(shape)[:32]}", _NUMBERS)
    return Numbers(name, tuple(shape), dtype, fortran, begin)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    # `numpy.lib.format`: public; it parses a literal, of limited length, and unpickles nothing
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # 3.0 is for names of records
        raise ValueError(f"version {version}")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = readers[version](file, max_header_size=_HEADER)
    return found


def _elements(file: BinaryIO, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Elements of a file, read into one array."""
    found = np.empty(count, dtype)
    view: Any = found.view(np.uint8)
    at = 0
    while at < len(view):
        got = file.readinto(view[at : at + GROUP].data)  # type: ignore[attr-defined]
        if not got:
            raise ValueError("the file ends before its array")
        at += got
    return found


def _refusal(path: FilePath, name: str, got: str, expected: str, fix: str = _FIX) -> CheckpointError:
    return CorruptCheckpointError(f"{path}: {shortened(name)}", got=got, expected=expected, fix=fix)
