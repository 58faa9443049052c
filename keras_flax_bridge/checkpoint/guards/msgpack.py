"""Files of `flax.serialization`: where the arrays lie in the msgpack; nothing is unpacked into objects.

No library is used: msgpack's own makes room for what a list declares before it is there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, shortened
from keras_flax_bridge.tree.paths import Flat, Path, join_path
from keras_flax_bridge.tree.untrusted.tables import DTYPES
from keras_flax_bridge.tree.untrusted.texts import clipped, require_regular

_DEPTH = 100  # of levels; a level takes frames of Python
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's codes of extensions
_CHUNKED = "__msgpack_chunked_array__"  # Flax's key of a dict that is an array of more than 1 GB
_WHOLE = "a state as flax.serialization.to_bytes writes it"
_FIX = "Nothing was read. The file is damaged, or other code than Flax wrote it."
_LENGTHS = {  # of what follows a code: how many bytes the number has
    **dict(zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True)),  # bytes
    **dict(zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True)),  # extensions
    **dict(zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True)),  # texts
    **dict(zip((0xDC, 0xDD, 0xDE, 0xDF), (2, 4, 2, 4), strict=True)),  # lists, maps
}
_NUMBERS = {
    **dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
}
_SINGLE: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}


class Packed(NamedTuple):
    """An array of a file: its shape, dtype, and the parts of the file that are its elements, in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[tuple[int, int], ...]


class _Part(NamedTuple):
    """Some bytes of the file that are not read: of text, of bytes, or of an extension of a code."""

    kind: int | str
    begin: int
    end: int


def begins_as_msgpack(path: FilePath) -> bool:
    """Whether the first byte of a file is that of a map."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:
        return False
    return bool(first) and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


def packed(path: FilePath) -> Flat:
    """The leaves of a file: arrays, of which none is read, and numbers.

    Raises:
        CorruptCheckpointError: if it is no such file, or is not whole.
    """
    require_regular(path, CorruptCheckpointError)
    with path.open("rb") as file:
        scan = _Scan(path, file, path.stat().st_size)
        found = dict(scan.leaves(()))
        if scan.at != scan.end:
            raise scan.refusal((), f"{scan.end - scan.at:,} bytes after the state")
    if () in found:
        raise scan.refusal((), "one leaf without a name")
    return found


class _Scan:
    """One pass over a file; every length is compared with the bytes that are left."""

    def __init__(self, path: FilePath, file: BinaryIO, end: int):
        self.path, self.end, self.at = path, end, 0
        self._file = file
        self._count = 0

    def refusal(self, place: Path, got: str, expected: str = _WHOLE) -> CheckpointError:
        where = f"{self.path}: {shortened(join_path(place))}" if place else str(self.path)
        return CorruptCheckpointError(where, got=got, expected=expected, fix=_FIX)

    # --- the tree

    def leaves(self, place: Path) -> Iterator[tuple[Path, Any]]:
        """The leaves of the value that begins here."""
        value = self._next(place)
        if isinstance(value, _Part):
            yield place, self._leaf(place, value)
        elif isinstance(value, tuple):
            yield from self._children(place, *value)
        elif value is not None:
            yield place, value

    def _children(self, place: Path, kind: str, count: int) -> Iterator[tuple[Path, Any]]:
        """The leaves below a map or a list."""
        if len(place) >= _DEPTH:
            raise self.refusal(place[:8], "a state that is nested too deeply", f"at most {_DEPTH} levels")
        names: set[str] = set()
        for index in range(count):
            name = self._name(place) if kind == "map" else str(index)
            if name in names:
                raise self.refusal((*place, name), "a name that is there twice", "each name once")
            names.add(name)
            if name == _CHUNKED:
                yield place, self._chunked(place, count)
                return
            yield from self.leaves((*place, name))

    def _name(self, place: Path) -> str:
        found = self._next(place)
        if isinstance(found, int):  # `nnx.State` has lists of layers so
            return str(found)
        if not isinstance(found, _Part) or found.kind != "text" or found.end - found.begin > 4 * limits.NAME:
            raise self.refusal(place, "a name that is no short text")
        name = self._text(found, place)
        if limits.is_odd(name):
            raise self.refusal(place, f"the name {clipped(name)}", "a short name without control characters")
        return name

    def _text(self, part: _Part, place: Path) -> str:
        self._file.seek(part.begin)
        try:
            return self._file.read(part.end - part.begin).decode()
        except UnicodeDecodeError as error:
            raise self.refusal(place, "text that is not UTF-8") from error
        finally:
            self._file.seek(self.at)

    # --- leaves

    def _leaf(self, place: Path, part: _Part) -> Any:
        if part.kind not in (_ARRAY, _COMPLEX, _SCALAR):
            kind = part.kind if isinstance(part.kind, str) else f"an extension of code {part.kind}"
            raise self.refusal(place, f"a leaf that is {kind}", "arrays and numbers")
        after, outer = self.at, self.end
        self.at, self.end = part.begin, part.end  # what lies in the extension is msgpack too
        self._file.seek(self.at)
        found = self._complex(place) if part.kind == _COMPLEX else self._array(place)
        if self.at != self.end:
            raise self.refusal(place, "bytes after the array")
        self.at, self.end = after, outer
        self._file.seek(self.at)
        return found

    def _complex(self, place: Path) -> complex:
        self._list(place, 2)
        real, imaginary = self._next(place), self._next(place)
        if not isinstance(real, float) or not isinstance(imaginary, float):
            raise self.refusal(place, "what is no complex number")
        return complex(real, imaginary)

    def _array(self, place: Path) -> Packed:
        self._list(place, 3)
        sizes = [self._next(place) for _ in range(self._list(place, None))]
        name, data = self._next(place), self._next(place)
        if not isinstance(name, _Part) or name.kind != "text" or name.end - name.begin > limits.NAME:
            raise self.refusal(place, "an array without a dtype")
        text = self._text(name, place)
        if text not in DTYPES:
            raise self.refusal(place, f"dtype {clipped(text)}", "a dtype of jax")
        dtype = np.dtype(jnp.dtype(text))
        if any(type(n) is not int or not 0 <= n < 1 << 63 for n in sizes):
            raise self.refusal(place, "a shape that is not one")
        whole = isinstance(data, _Part) and data.kind == "bytes"
        if not whole or math.prod(sizes) * dtype.itemsize != data.end - data.begin:
            size = f"{data.end - data.begin:,}" if whole else "no"
            raise self.refusal(place, f"{size} bytes for {text}{sizes[:32]}")
        return Packed(tuple(sizes), dtype, ((data.begin, data.end),))

    def _list(self, place: Path, count: int | None) -> int:
        """The length of a list that begins here."""
        found = self._next(place)
        is_list = isinstance(found, tuple) and not isinstance(found, _Part) and found[0] == "list"
        if not is_list or found[1] > 64 or count not in (None, found[1]):
            raise self.refusal(place, "what is no array", "shape, dtype and bytes")
        length: int = found[1]
        return length

    def _chunked(self, place: Path, count: int) -> Packed:
        """An array in parts: a dict with its shape and the parts, by number."""
        rest: dict[str, dict[Path, Any]] = {}
        if self._next(place) is not True or count != 3:
            raise self.refusal(place, "an array in parts without its shape")
        for _ in range(2):
            name = self._name(place)
            rest[name] = {path[len(place) + 1 :]: leaf for path, leaf in self.leaves((*place, name))}
        shape = self._numbered(place, rest.get("shape", {}))
        parts = self._numbered(place, rest.get("chunks", {}))
        if any(type(n) is not int or not 0 <= n < 1 << 63 for n in shape) or len(shape) > 64:
            raise self.refusal(place, "a shape that is not one")
        kinds = {part.dtype if isinstance(part, Packed) else None for part in parts}
        dtype = next(iter(kinds)) if len(kinds) == 1 else None
        spans = tuple(span for part in parts for span in part.parts) if dtype is not None else ()
        if dtype is None or sum(b - a for a, b in spans) != math.prod(shape) * dtype.itemsize:
            raise self.refusal(place, "parts that are not those of one array")
        return Packed(tuple(shape), dtype, spans)

    def _numbered(self, place: Path, found: dict[Path, Any]) -> list[Any]:
        """What has the names 0, 1, 2, ..., in this order."""
        names = [(str(i),) for i in range(len(found))]
        if set(names) != set(found):
            raise self.refusal(place, "an array in parts that are not numbered")
        return [found[name] for name in names]

    # --- msgpack

    def _next(self, place: Path) -> Any:
        """A number, None, a `_Part`, or a map or a list as its kind and length; its items come next."""
        self._count += 1
        if self._count > limits.CONFIG_BOUNDS.values:
            raise self.refusal((), "too many values", f"at most {limits.CONFIG_BOUNDS.values:,}")
        code = self._take(1, place)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code < 0xA0:
            return "map" if code < 0x90 else "list", code & 0x0F
        if code < 0xC0:
            return self._skip("text", code & 0x1F, place)
        if code in _SINGLE:
            return _SINGLE[code]
        if code in _NUMBERS:
            form = _NUMBERS[code]
            return struct.unpack(form, self._take(struct.calcsize(form), place))[0]
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << (code - 0xD4), place)
        if code not in _LENGTHS:
            raise self.refusal(place, f"the byte {code:#x}")
        length = int.from_bytes(self._take(_LENGTHS[code], place), "big")
        if code >= 0xDC:
            return "list" if code < 0xDE else "map", length
        if 0xC7 <= code <= 0xC9:
            return self._extension(length, place)
        return self._skip("bytes" if code < 0xC7 else "text", length, place)

    def _extension(self, length: int, place: Path) -> _Part:
        return self._skip(self._take(1, place)[0], length, place)

    def _skip(self, kind: int | str, length: int, place: Path) -> _Part:
        if length > self.end - self.at:
            raise self.refusal(place, f"{length:,} bytes, where {self.end - self.at:,} are left")
        begin, self.at = self.at, self.at + length
        self._file.seek(self.at)
        return _Part(kind, begin, self.at)

    def _take(self, length: int, place: Path) -> bytes:
        found = self._file.read(length) if length <= self.end - self.at else b""
        if len(found) < length:
            raise self.refusal(place, "an end in the middle of a value")
        self.at += length
        return found
