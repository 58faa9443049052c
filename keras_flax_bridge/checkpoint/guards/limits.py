"""The limits for files of Keras's kinds, and the error for what exceeds them.

Keras writes neither compressed zip members nor compressed or chunked arrays, so every limit leaves
room for files that other tools have written again, and none is reached by a file of Keras's own.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path as FilePath

from keras_flax_bridge.errors import CheckpointError, shortened
from keras_flax_bridge.tree.untrusted.texts import Bounds

MEBI = 1 << 20

# Declared bytes for each stored byte, of a zip member, of an array and of a whole file. Keras's own
# files have 1; trained weights compress to a half or so, with slots that are zero to a third. Deflate
# ends at 1032. Keras refuses from 100 (zip) and 1000 (HDF5) on, and only above 256 MiB and 4 GiB.
RATIO = 100
# Below this size, of one member or array or of all, the ratio does not matter: nothing is exhausted.
FLOOR = 16 * MEBI

# `config.json`: those of keras.applications are far smaller. Values may need
# 30 times the bytes of its text in memory, so they are counted as well.
CONFIG = 16 * MEBI
CONFIG_BOUNDS = Bounds(CONFIG, 1_000_000)

# A zip archive of Keras's holds 3 members and the assets, such as vocabularies. The directory is read
# whole by whoever opens the archive, and takes about ten times its size in memory.
MEMBERS = 10_000
ASSETS = 1 << 30  # bytes of all assets together: the vocabularies of the largest models have some 30 MB
FILE_NAME = 255  # bytes: what file systems take
DIRECTORY = 4 * MEBI

# Groups and arrays of an HDF5 file together. Far above what models have.
OBJECTS = 100_000
DEPTH = 256  # Keras needs two levels for each level of nested layers
NAME = 1024  # characters of one name
NAMES = 32 * MEBI  # characters of all paths together

# A chunk of an array may be larger than the array only below this size.
CHUNK = MEBI

_FIX = (
    "Nothing was read. Keras writes no such file: ask for one that Keras wrote. If you trust the file, load "
    "it with Keras itself and save it again."
)


def refusal(path: FilePath, name: str, got: str, expected: str) -> CheckpointError:
    """The error for a rejected file: `name` is the invalid part of it."""
    return CheckpointError(f"{path}: {shortened(name)}", got=got, expected=expected, fix=_FIX)


def is_odd(name: str) -> bool:
    """Whether a name is longer than any of Keras's, or holds control characters."""
    return len(name) > NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def require_ratio(path: FilePath, name: str, declared: int, stored: int) -> None:
    """Checks a declared size against the bytes that are stored for it.

    Raises:
        CheckpointError: if it is more than `RATIO` times as large, and more than `FLOOR`.
    """
    if declared > FLOOR and declared > RATIO * stored:
        got = f"{declared:,} bytes declared, {stored:,} bytes stored"
        raise refusal(path, name, got, f"at most {RATIO} declared bytes for each stored byte")
