"""Untrusted files: which files are opened, how much is read, and valid JSON.

The meaning of the text is checked in `schema`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, said, shortened

MOST_BYTES = 1 << 26  # of a text: 300 times the metadata of a state of 5,000 leaves
MOST_VALUES = 1 << 21  # in a JSON text: each takes up to 100 bytes in Python, however few it has in the file


class Bounds(NamedTuple):
    """Limits of a JSON text: characters, and values, which need more memory than their text."""

    characters: int
    values: int


JSON = Bounds(MOST_BYTES, MOST_VALUES)
_MOST_ENTRIES = 1 << 20  # files and folders of one checkpoint
_MOST_LEVELS = 200  # of a JSON text that C++ reads, whose stack nobody checks
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def read_text(path: Path, kind: type[CheckpointError] = CorruptCheckpointError) -> str:
    """The text of a regular file.

    Raises:
        CheckpointError: of the given kind, if it is not a regular file, is too long, or is not UTF-8.
    """
    require_regular(path, kind)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a file can grow, and one of /proc has no size
        if len(content) > MOST_BYTES:
            raise _unlike(path, f"more than {MOST_BYTES:,} bytes", "a shorter text", kind)
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _unlike(path, f"{type(error).__name__}: {_reason(error)}", "a readable text", kind) from error


def read_json(path: Path, kind: type[CheckpointError] = CorruptCheckpointError) -> Any:
    """Reads a JSON file.

    Raises:
        CheckpointError: of the given kind, if the file can't be read, or is not JSON within bounds.
    """
    return parsed(read_text(path, kind), str(path), kind)


def parsed(
    text: Any, where: str, kind: type[CheckpointError] = CorruptCheckpointError, bounds: Bounds = JSON
) -> Any:
    """Parses a JSON text.

    Args:
        text: the text.
        where: the file and the field in it, for the error.
        kind: the error to raise.
        bounds: how much it may hold.

    Raises:
        CheckpointError: of the given kind, if it is not JSON, has a key twice, or is too deep or too long.
    """
    if not isinstance(text, str):
        raise _unlike(where, f"a {type(text).__name__}", "a text of JSON", kind)
    require_bounded(text, where, kind, bounds)
    try:
        found = json.loads(text, object_pairs_hook=_mapping)
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair can't be printed or stored
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise _unlike(where, f"text that is not valid JSON: {said}", "JSON", kind) from error


def decoded(content: bytes, where: str, kind: type[CheckpointError] = CorruptCheckpointError) -> str:
    """Bytes as the text that they are of.

    Raises:
        CheckpointError: of the given kind, if they are not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _unlike(where, "bytes that are not UTF-8", "a readable text", kind) from error


def require_bounded(
    text: str, where: str, kind: type[CheckpointError] = CorruptCheckpointError, bounds: Bounds = JSON
) -> None:
    """Checks that a text of JSON does not become many times larger in memory.

    Raises:
        CheckpointError: of the given kind.
    """
    values = sum(map(text.count, ",[{"))
    if len(text) > bounds.characters or values > bounds.values:
        raise _unlike(
            where,
            f"{len(text):,} characters with some {values:,} values",
            f"at most {bounds.characters:,} characters and {bounds.values:,} values",
            kind,
        )


def require_modest(path: Path) -> None:
    """Checks that another library may read a JSON file completely.

    Raises:
        CorruptCheckpointError: if it is not a regular file, is too deep, or becomes too large in memory.
    """
    require_regular(path, CorruptCheckpointError)
    if path.stat().st_size > MOST_VALUES:  # fewer characters have fewer values
        text = read_text(path)
        require_bounded(text, str(path))
    else:
        text = path.read_bytes().decode(errors="replace")
    if text.count("[") + text.count("{") > _MOST_LEVELS:
        brackets = (1 if sign in "[{" else -1 for sign in re.findall(r"[\[\]{}]", _STRING.sub("", text)))
        if max(accumulate(brackets), default=0) > _MOST_LEVELS:
            got = f"more than {_MOST_LEVELS} levels of lists and objects"
            raise _unlike(path, got, "JSON as Orbax writes it", CorruptCheckpointError)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {clipped(twice)} appears twice in one object")
    return found


def clipped(value: Any, most: int = 60) -> str:
    """A short value as printable ASCII.

    >>> clipped("a" * 100, 5)
    "'aaaa..."
    """
    # a number of 5,000 digits can't be printed, a text may hold escape sequences
    text = f"an integer of {value.bit_length()} bits" if _is_long(value) else ascii(value)
    return shortened(text, most)


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 256


def require_files(folder: Path) -> None:
    """Checks that a folder contains only regular files and folders, and no link that points outside of it.

    Reading a FIFO or a device could block forever; through a link the arrays of a
    checkpoint could be those of any file of the user.

    Raises:
        CorruptCheckpointError: naming the entry that is something else.
    """
    for count, path in enumerate(_entries(folder)):
        if count > _MOST_ENTRIES:
            raise _unlike(
                folder, f"more than {_MOST_ENTRIES:,} files", "one checkpoint", CorruptCheckpointError
            )
        require_inside(path, folder)
        require_regular(path, CorruptCheckpointError)


def require_inside(path: Path, folder: Path) -> None:
    """Checks that a file or folder is inside a folder after all links are resolved.

    In the cache of the Hugging Face hub every file of a snapshot is a link into the folder ``blobs``
    of its repository.

    Raises:
        CorruptCheckpointError: if it does not.
    """
    allowed = [Path(os.path.realpath(folder))]
    if "snapshots" in folder.parts:
        last = len(folder.parts) - 1 - folder.parts[::-1].index("snapshots")
        allowed.append(Path(os.path.realpath(Path(*folder.parts[:last])), "blobs"))  # no link itself
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(base) for base in allowed):
        raise CorruptCheckpointError(
            str(path),
            got="a link that points outside the checkpoint",
            expected="a file in it",
            fix="If you trust it, put a copy of the file in the place of the link.",
        )


def _entries(folder: Path) -> Iterator[Path]:
    """Every entry below a folder that is not a folder; each folder once, wherever links lead."""
    pending, seen = [folder], set()
    while pending:
        here = pending.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if entry.is_symlink():
                            require_inside(Path(entry.path), folder)
                        pending.append(Path(entry.path))
                    elif not entry.is_file(follow_symlinks=False):  # those need no second look
                        yield Path(entry.path)
        except OSError as error:
            got = f"a folder that can't be read ({_reason(error)})"
            raise _unlike(here, got, "a readable folder", CorruptCheckpointError) from error


def require_regular(path: Path, kind: type[CheckpointError] = CheckpointError) -> None:
    """Checks that a path, or what links lead to, is a file: reading anything else may never end.

    Raises:
        CheckpointError: of the given kind, if it is not.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        got = "nothing" if isinstance(error, FileNotFoundError) else _reason(error)
        raise _unlike(path, got, "a regular file", kind) from error
    if not stat.S_ISREG(mode):
        named = next((name for test, name in _KINDS if test(mode)), "something else")
        raise _unlike(path, named, "a regular file", kind)


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_reachable(path: Path) -> None:
    """Checks that the operating system can look for a path, whether something is there or not.

    Raises:
        CheckpointError: if its name is too long or has a null character, if links lead in a circle, or if
            a folder on the way can't be entered.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        got = _reason(error)
        raise CheckpointError(
            clipped(str(path), 300), got=got, expected="a path that can be reached", fix="Check the path."
        ) from error


def _reason(error: BaseException) -> str:
    """The reason of an error, without the path, which the message already has."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)}, {os.strerror(error.errno)}"
    return said(error, 300)


def _unlike(where: Any, got: str, expected: str, kind: type[CheckpointError]) -> CheckpointError:
    return kind(str(where), got=got, expected=expected, fix="The file is damaged or of a different kind.")
