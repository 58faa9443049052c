"""Zip archives: `.keras` files."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, BinaryIO

from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.checkpoint.guards.limits import refusal, require_ratio
from keras_flax_bridge.errors import CorruptCheckpointError, shortened
from keras_flax_bridge.tree.untrusted.texts import require_regular

_PART = limits.MEBI  # bytes that are read at a time
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, length of its name, length of what follows
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive:
    """An archive whose members were checked, but not their contents."""

    def __init__(self, path: FilePath, file: BinaryIO, opened: zipfile.ZipFile):
        self.path = path
        self._file = file
        self._zip = opened
        infos = opened.infolist()
        _require_names(path, [info.filename for info in infos])
        for info in infos:
            _require_plain(path, info)
            require_ratio(path, info.filename, info.file_size, info.compress_size)
        declared, stored = (
            (sum(sizes) for sizes in zip(*map(_sizes, infos), strict=True)) if infos else (0, 0)
        )
        require_ratio(path, "all members together", declared, stored)
        self._begins = _begins(path, file, infos, opened.start_dir)
        self.members = {info.filename: info for info in infos}

    def stored(self, name: str) -> int:
        """The bytes that a member takes in the file."""
        return self._info(name).compress_size

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name in self.members:
            return self.members[name]
        raise refusal(self.path, name, "no such member", "an archive that Keras 3 wrote")

    def text(self, name: str, most: int) -> bytes:
        """The content of a member.

        Raises:
            CheckpointError: if it is longer than `most` bytes.
        """
        info = self._info(name)
        if info.file_size > most:
            raise refusal(self.path, name, f"{info.file_size:,} bytes", f"at most {most:,}")
        return b"".join(self._parts(name))

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A member as a seekable file; a compressed one is unpacked to disk and checked."""
        info = self._info(name)
        if info.compress_type == zipfile.ZIP_STORED:
            yield io.BufferedReader(_Part(self._file, self._begins[name], info.file_size))
            return
        with tempfile.TemporaryFile() as unpacked:
            for part in self._parts(name):
                unpacked.write(part)
            unpacked.seek(0)
            yield unpacked

    def _parts(self, name: str) -> Iterator[bytes]:
        """A member in parts; after the last one its checksum is compared."""
        with self._speaking(name), self._zip.open(self._info(name)) as member:
            while part := member.read(_PART):
                yield part

    def damaged(self) -> dict[str, str]:
        """Damaged members by name: reads each and compares it with its checksum."""
        found = {}
        for name in self.members:
            try:
                for _ in self._parts(name):
                    pass
            except CorruptCheckpointError as error:
                found[name] = str(error.got)
        return found

    def require_whole(self) -> None:
        """Compares every member with its checksum: Keras's own loader ignores a mismatch.

        Raises:
            CorruptCheckpointError: naming the members that are damaged.
        """
        found = self.damaged()
        if found:
            said = "; ".join(f"{shortened(name)}: {why}" for name, why in found.items())
            raise CorruptCheckpointError(
                str(self.path),
                got=said,
                expected="the bytes that were written",
                fix="Use another copy of the file.",
            )

    @contextlib.contextmanager
    def _speaking(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # zipfile and zlib raise many kinds
            raise CorruptCheckpointError(
                f"{self.path}: {shortened(name)}",
                got=f"{type(error).__name__}: {shortened(str(error))}",
                expected="the bytes that were written",
                fix="Use another copy of the file.",
            ) from error


@contextlib.contextmanager
def archive(path: FilePath) -> Iterator[Archive]:
    """A `.keras` file, opened and checked.

    Raises:
        CheckpointError: if it is not such a file, or contains something that Keras never writes.
    """
    with contextlib.ExitStack() as stack:
        require_regular(path)
        try:
            file = stack.enter_context(path.open("rb"))
            opened = stack.enter_context(zipfile.ZipFile(_Opening(file)))
        except Exception as error:  # zipfile raises many kinds, struct's and Unicode's among them
            got = f"{type(error).__name__}: {shortened(str(error))}"
            raise refusal(path, "the archive", got, "a zip archive that Keras wrote") from error
        yield Archive(path, file, opened)


class _Opening:
    """A file whose reads are limited to the size of a valid archive's directory.

    `zipfile` reads the directory completely before its size can be checked.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        most = limits.DIRECTORY
        found = self._file.read(most + 1 if size < 0 or size > most else size)
        if len(found) > most:
            raise zipfile.BadZipFile(f"a directory of more than {most:,} bytes")
        return found


class _Part(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, file: BinaryIO, begin: int, size: int):
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._begin + self._at)
        got: int = self._file.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        self._at += got
        return got


def _sizes(info: zipfile.ZipInfo) -> tuple[int, int]:
    return info.file_size, info.compress_size


def _require_names(path: FilePath, names: list[str]) -> None:
    if len(names) > limits.MEMBERS:
        raise refusal(path, "the archive", f"{len(names):,} members", f"at most {limits.MEMBERS:,}")
    for name, times in Counter(names).items():
        if times > 1:
            raise refusal(path, name, f"{times} members of this name", "each name once")
        parts = name.removesuffix("/").split("/")
        odd = not {"", ".", ".."}.isdisjoint(parts) or "\\" in name or ":" in parts[0]
        if odd or limits.is_odd(name):
            raise refusal(path, name, "this name of a member", "a relative path inside the archive")


def _require_plain(path: FilePath, info: zipfile.ZipInfo) -> None:
    """Checks that a member is a plain file or folder, without a password."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    odd = {
        "an encrypted member": info.flag_bits & 0x41,
        "a link or a device": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
        f"compression of kind {info.compress_type}": info.compress_type not in _METHODS,
        f"{info.file_size:,} bytes declared, {info.compress_size:,} stored": (
            info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size
        ),
    }
    for got, is_so in odd.items():
        if is_so:
            raise refusal(path, info.filename, got, "a file, stored or deflated")


def _begins(path: FilePath, file: BinaryIO, infos: list[zipfile.ZipInfo], end: int) -> dict[str, int]:
    """The offset of each member, after checking that no two overlap."""
    found, last = {}, end
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        header = b""
        if 0 <= info.header_offset < end:  # a forged directory may lead to before the file
            file.seek(info.header_offset)
            header = file.read(_HEADER.size)
        whole = len(header) == _HEADER.size and header[:4] == b"PK\3\4"
        _, name, extra = _HEADER.unpack(header) if whole else (b"", 0, 0)
        begin = info.header_offset + _HEADER.size + name + extra
        if not whole or begin + info.compress_size > last:
            got = "a header that is not there, or bytes that belong to another member as well"
            raise refusal(path, info.filename, got, "bytes of its own")
        found[info.filename], last = begin, info.header_offset
    return found
