"""Orbax itself, imported where it is first used, and what it raises, said in our words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.errors import CheckpointError

STATE, DATA = "state", "data"  # names of the checkpointables; Orbax's default name has changed before
PACKED = "%packed"  # no path can have this name: a % in a name is written %25
MARK = "_CHECKPOINT_METADATA"  # the file that Orbax writes last
LEAVES = "_METADATA"  # the file in which Orbax lists the leaves of a tree
OURS, OURS_SUM = "keras_flax_bridge", "keras_flax_bridge_crc32"  # keys of our own metadata


@cache
def ocp() -> Any:
    from orbax.checkpoint import v1

    return v1


def legacy() -> Any:
    """The interface that most Flax code uses."""
    import orbax.checkpoint

    return orbax.checkpoint


@contextlib.contextmanager
def speaking(
    where: FilePath | str, doing: str, kind: type[CheckpointError] = CheckpointError
) -> Iterator[None]:
    """Turns what Orbax raises into an error that says which checkpoint it was."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many kinds, most of them undocumented
        raise kind(
            str(where),
            got=f"{type(error).__name__} while {doing}: {_brief(error)}",
            expected=f"{doing} to succeed",
            fix="Older steps are intact. Check the folder, its permissions and the free space.",
        ) from error


def _brief(error: Exception) -> str:
    """What an error says, without the settings that tensorstore puts behind it, and the drivers before."""
    text = re.sub(r' \[tensorstore_spec.*|Error opening "\w+" driver: ', "", " ".join(str(error).split()))
    return text[:500]


def absolute(path: Any) -> FilePath:
    """A local path as an absolute one.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        if "://" not in str(path):
            return FilePath(path).expanduser().absolute()
    except (TypeError, RuntimeError):
        pass
    raise CheckpointError(
        repr(path),
        got=f"a {type(path).__name__}",
        expected="a local path",
        fix="Pass a str or a pathlib.Path.",
    )


def is_checkpoint(path: FilePath) -> bool:
    """Whether a folder is a finished checkpoint, or one item of it."""
    return (path / MARK).is_file() or (path / LEAVES).is_file()


def steps_in(root: FilePath) -> dict[int, FilePath]:
    """The folders of the finished steps of a root folder, ascending; others may have written 0007."""
    folders = root.iterdir() if root.is_dir() else ()
    steps = {int(f.name): f for f in folders if f.name.isdigit() and is_checkpoint(f)}
    return dict(sorted(steps.items()))


def tensorstore() -> Any:
    """The storage below Orbax."""
    import tensorstore

    return tensorstore
