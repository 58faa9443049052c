"""Finds the folder or file to read: a given one, a step of a root folder, or the newest intact step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras_flax_bridge.checkpoint import guards, orbax_io, presets
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    printable,
)
from keras_flax_bridge.state.report import listed

log = logging.getLogger("keras_flax_bridge")


def candidates(path: Any, step: int | None) -> list[FilePath]:
    """The folders to read, newest first: one, or all steps of a root folder.

    Raises:
        CheckpointNotFoundError: if there is none, or not that step.
        ArgumentError: for a step of what holds no steps.
    """
    folder = orbax_io.absolute(path)
    if folder.is_file():
        fix = "Leave step= out: a file holds one state."
        require(step is None, str(folder), f"step={step} with a file", "a root folder", fix)
        if guards.kind(folder):
            return [folder]
        raise unknown(folder)
    if orbax_io.is_checkpoint(folder):
        named = step is None or (orbax_io.step_of(folder.name) == step)
        fix = "Leave step= out, or give the folder above it."
        require(named, str(folder), f"step={step} with the folder of one checkpoint", "a root folder", fix)
        return [folder]
    if presets.is_preset(folder):
        fix = "Leave step= out."
        require(step is None, str(folder), f"step={step} with a preset", "a root folder of steps", fix)
        return [folder]
    steps = orbax_io.steps_in(folder)
    if not steps and (tensors := _tensors_in(folder)) is not None:
        fix = "Leave step= out: the folder holds one state."
        require(step is None, str(folder), f"step={step} with a folder of .safetensors", "a root folder", fix)
        return [tensors]
    if not steps:
        _require_one_form(folder)
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


def _require_one_form(root: FilePath) -> None:
    """Checks that it is clear which of the folders in a root are steps."""
    forms = [form for form, _ in orbax_io.steps_by_form(root).items()]
    if len(forms) > 1:
        raise CheckpointError(
            str(root),
            got=f"steps of several names: {listed(forms, 8)}",
            expected="steps whose names differ in the number alone",
            fix="Give the folder of the step that is meant.",
        )


def unknown(path: FilePath) -> CheckpointError:
    """The error for a file of a kind that is not read here."""
    return CheckpointError(
        str(path),
        got="a file of another kind",
        expected=f"a folder of checkpoints, or a file that ends in {', '.join(guards.SUFFIXES)}",
        fix="The suffix determines the format: rename the file to the right one.",
    )


def _tensors_in(folder: FilePath) -> FilePath | None:
    """The index of the `.safetensors` files in a folder, or the one file; None if there is none.

    Raises:
        CheckpointError: if it is not clear which is meant.
    """
    files = sorted(folder.glob("*.safetensors*")) if folder.is_dir() else []
    for suffix in (guards.INDEX, guards.TENSORS):
        found = [file for file in files if file.name.endswith(suffix)]
        if len(found) > 1:
            raise CheckpointError(
                str(folder),
                got=f"{len(found)} files that end in {suffix}: {listed(file.name for file in found)}",
                expected="one, or the index of several",
                fix="Give the path of the one that is meant.",
            )
        if found and (suffix == guards.INDEX or not _has_others(folder)):
            return found[0]
    return None


def _has_others(folder: FilePath) -> bool:
    """Whether a folder has files of other kinds as well, so that it is no folder of Hugging Face."""
    return any(file.name.endswith((guards.KERAS, guards.H5, guards.NPZ)) for file in folder.iterdir())


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
