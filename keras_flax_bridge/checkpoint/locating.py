"""Finds the folder or file to read: a given one, a step of a root folder, or the newest intact step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras_flax_bridge.checkpoint import keras_files, orbax_io
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.errors import CheckpointNotFoundError, CorruptCheckpointError, printable

log = logging.getLogger("keras_flax_bridge")


def candidates(path: Any, step: int | None) -> list[FilePath]:
    """The folders to read, newest first: one, or all steps of a root folder.

    Raises:
        CheckpointNotFoundError: if there is none, or not that step.
        ArgumentError: for a step of what holds no steps.
    """
    folder = orbax_io.absolute(path)
    if keras_files.is_keras_file(folder):
        return [folder]
    if orbax_io.is_checkpoint(folder):
        named = step is None or (orbax_io.step_of(folder.name) == step)
        fix = "Leave step= out, or give the folder above it."
        require(named, str(folder), f"step={step} with the folder of one checkpoint", "a root folder", fix)
        return [folder]
    steps = orbax_io.steps_in(folder)
    if not steps:
        raise CheckpointNotFoundError(
            str(folder),
            got="no checkpoint",
            expected="a checkpoint or a root folder of steps",
            fix="Look at the path; a save in the background is there after manager.wait().",
        )
    if step is not None and step not in steps:
        raise CheckpointNotFoundError(
            str(folder),
            got=f"step={step}",
            expected=f"one of the steps {list(steps)}",
            fix="Omit step= for the newest; max_to_keep= sets how many steps are kept.",
        )
    return [steps[found] for found in reversed(steps) if step in (None, found)]


def from_newest(
    folders: Sequence[FilePath], read: Callable[[FilePath], Any]
) -> tuple[Any, FilePath, Sequence[FilePath]]:
    """Calls `read` on the newest folder that is not damaged; also returns it and the damaged folders.

    Raises:
        CorruptCheckpointError: if all are damaged.
    """
    for i, (folder, older) in enumerate(zip(folders, [*folders[1:], None], strict=True)):
        try:
            return read(folder), folder, folders[:i]
        except CorruptCheckpointError as error:
            if older is None:
                raise
            log.error("%s", error)
            warnings.warn(printable(f"{folder} is damaged; going back to {older}"), stacklevel=4)
    raise AssertionError  # there is at least one folder
