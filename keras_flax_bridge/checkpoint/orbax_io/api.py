"""Orbax itself, imported where it is first used, and what it raises, said in our words."""

from __future__ import annotations

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from keras_flax_bridge.errors import ArgumentError, CheckpointError
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.untrusted import texts

FilePath = pathlib.Path

STATE, DATA, CALLBACKS, ASSETS = (
    "state",
    "data",
    "callbacks",
    "assets",
)  # names of the checkpointables; Orbax's default name has changed before
ARRAYS = "arrays"  # the one leaf of what callbacks remember, and of assets
PACKED = "%packed"  # no path can have this name: a % in a name is written %25
MARK = "_CHECKPOINT_METADATA"  # the file that Orbax writes last
LEAVES = "_METADATA"  # the file in which Orbax lists the leaves of a tree
LOGS = "metrics"  # the item in which Orbax stores the logged values of a step, and its one file
OURS, OURS_SUM = "keras_flax_bridge", "keras_flax_bridge_crc32"  # keys of our own metadata


@cache
def ocp() -> Any:
    """Orbax's current interface, imported at the first call."""
    from orbax.checkpoint import v1

    return v1


def load(root: FilePath, tree: Any, item: str | None) -> Any:
    """The values of a tree's leaves; a placeholder stays one."""
    read = ocp().load if compat.has("load, save, metadata") else ocp().load_pytree
    return read(root, tree, checkpointable_name=item)


def stored_tree(root: FilePath, item: str | None) -> Any:
    """The tree that is stored, with the metadata of its leaves."""
    read = ocp().metadata if compat.has("load, save, metadata") else ocp().pytree_metadata
    return read(root, checkpointable_name=item).metadata


def read_beside(root: FilePath, item: str | None) -> list[FilePath]:
    """The other folders whose metadata `stored_tree` reads: before Orbax 0.12 those of all items."""
    if item is None or compat.has("load, save, metadata"):
        return []
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name != item]


def context_of(
    *,
    saving: Mapping[str, Any] | None = None,
    asynchronous: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
) -> Any:
    """Orbax's options, those that differ from its defaults by name."""
    v1 = ocp()
    if not compat.has("options that are set in a context"):
        arrays = v1.options.ArrayOptions
        return v1.Context(
            array_options=arrays(saving=arrays.Saving(**saving or {})),
            async_options=v1.options.AsyncOptions(**asynchronous or {}),
            memory_options=v1.options.MemoryOptions(**memory or {}),
        )
    context = v1.Context()
    places = ((context.array.saving, saving), (context.asynchronous, asynchronous), (context.memory, memory))
    for place, options in places:
        for name, value in (options or {}).items():
            setattr(place, name, value)
    return context


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
        raise failed(where, doing, error, kind=kind) from error


def failed(
    where: FilePath | str,
    doing: str,
    error: BaseException,
    *,
    kind: type[CheckpointError] = CheckpointError,
    needed: int | None = None,
    also: str = "",
) -> CheckpointError:
    """The error for what Orbax raised.

    Args:
        where: the checkpoint.
        doing: what was being done.
        error: what Orbax raised.
        kind: the class of the error.
        needed: the bytes of what was being written, if it was a save.
        also: one more sentence.
    """
    room = "" if needed is None else _room(FilePath(where), needed)
    return kind(
        str(where),
        got=f"{type(error).__name__} while {doing}: {_brief(error)}",
        expected=f"{doing} to succeed",
        fix="Older steps are intact. Check the folder, its permissions and the free space."
        + "".join(f" {sentence}" for sentence in (room, also) if sentence),
    )


def _room(path: FilePath, needed: int) -> str:
    """How much room a save needs, and how much there is."""
    there = next((parent for parent in path.parents if parent.is_dir()), None)
    try:
        free = f"{shutil.disk_usage(there).free:,} bytes are" if there else "an unknown number of bytes is"
    except OSError:
        free = "an unknown number of bytes is"
    return f"The save needs {needed:,} bytes, and {free} free there."


def _brief(error: BaseException) -> str:
    """What an error says, without the settings that tensorstore puts behind it, and the drivers before."""
    text = re.sub(r' \[tensorstore_spec.*|Error opening "\w+" driver: ', "", " ".join(str(error).split()))
    return text[:500]


def absolute(path: Any) -> FilePath:
    """A local path as an absolute one.

    Raises:
        ArgumentError: if it is not a local path.
        CheckpointError: if it can't be looked for.
    """
    where, expected = "path", "a local path"
    if isinstance(path, (str, FilePath)) and "://" in str(path):
        fix = "Copy what is there to a folder, and pass the path of the folder."
        raise ArgumentError(where, got=repr(path), expected=expected, fix=fix)
    try:
        found = FilePath(path).expanduser().absolute()
    except TypeError:
        fix = "Pass a str or a pathlib.Path; a path is the first argument."
        raise ArgumentError(where, got=f"a {type(path).__name__}", expected=expected, fix=fix) from None
    except RuntimeError:  # of expanduser
        fix = "Write the path without ~."
        raise ArgumentError(where, got=f"{path!r}, an unknown home", expected=expected, fix=fix) from None
    texts.require_reachable(found)
    return found


def is_checkpoint(path: FilePath) -> bool:
    """Whether a folder is a finished checkpoint, or one item of it."""
    try:
        return (path / MARK).is_file() or (path / LEAVES).is_file()
    except OSError:  # a folder that can't be entered
        return False


def tensorstore() -> Any:
    """The storage below Orbax."""
    import tensorstore

    return tensorstore
