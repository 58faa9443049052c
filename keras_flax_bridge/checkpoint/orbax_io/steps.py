"""The steps in a root folder, by any names: ``7``, ``0007``, ``step_7``, ``checkpoint_7``."""

from __future__ import annotations

import re

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.orbax_io.api import FilePath, is_checkpoint, speaking

Steps = dict[int, FilePath]
# a number, behind a prefix and a sign, or behind a word for a step: ``llama3`` is none
_NUMBERED = re.compile(
    r"(?P<before>|.*[_=.-]|(?i:step|epoch|iter|iteration|ckpt|checkpoint))"
    r"(?P<step>[0-9]{1,18})(?P<after>|[_.-][A-Za-z_-]*)",
    re.DOTALL | re.ASCII,
)
_NO_STEP = re.compile(r"\.damaged|\.deleted|orbax-checkpoint-tmp")  # in names beside those of steps
_OF_FLAX = "checkpoint_"  # the prefix that `flax.training.checkpoints` reads unless it is told another


def step_of(name: str) -> int | None:
    """The step of the name of a folder; None for one that is not of a step.

    >>> step_of("0007"), step_of("step_7"), step_of("7.damaged"), step_of("llama3")
    (7, 7, None, None)
    """
    found = _NUMBERED.fullmatch(name)
    return None if found is None or _NO_STEP.search(name) else int(found["step"])


def steps_in(root: FilePath) -> Steps:
    """The finished steps of a root folder, ascending; others may have written 0007 or step_7.

    Names that are numbers go before others. Of others, those that differ in their number alone are steps.

    Raises:
        CheckpointError: if the folder can't be read.
    """
    groups = steps_by_form(root)
    chosen = next((form for form in ("*", f"{_OF_FLAX}*") if form in groups), None)
    return groups[chosen] if chosen else next(iter(groups.values())) if len(groups) == 1 else {}


def numbered_steps_in(root: FilePath) -> Steps:
    """The finished steps whose names are numbers, as this package writes them."""
    return steps_by_form(root).get("*", {})


def steps_by_form(root: FilePath) -> dict[str, Steps]:
    """The finished steps by what their names have in common, with ``*`` for the number.

    Raises:
        CheckpointError: if the folder can't be read.
    """
    with speaking(root, "listing the steps"):
        entries = list(root.iterdir()) if root.is_dir() else []
    groups: dict[str, Steps] = {}
    for entry in entries:
        found = _NUMBERED.fullmatch(entry.name)
        if found and step_of(entry.name) is not None and _is_step(entry, found["before"]):
            groups.setdefault(f"{found['before']}*{found['after']}", {})[int(found["step"])] = entry
    return {form: dict(sorted(steps.items())) for form, steps in sorted(groups.items())}


def _is_step(entry: FilePath, before: str) -> bool:
    """Whether this is a finished checkpoint of Orbax, or a file of Flax, which has no suffix."""
    if is_checkpoint(entry):
        return True
    flax = bool(before) and not entry.suffix and guards.kind(entry) == guards.MSGPACK
    return flax and entry.is_file() and guards.begins_as_msgpack(entry)
