"""The fits on one folder: each in a script is a phase, numbered in the order of the script."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from keras_flax_bridge.checkpoint.restoring import stored_positions
from keras_flax_bridge.errors import ArgumentError
from keras_flax_bridge.training import positions
from keras_flax_bridge.training.positions import Position
from keras_flax_bridge.training.resuming import CONTINUE

_DONE: dict[Path, int] = {}  # how many fits on a folder came to their end in this process


class Phase(NamedTuple):
    """One `fit` on a folder.

    Attributes:
        number: which one of the script, from 1.
        step: the step of its newest checkpoint; None if it has none.
        position: of that checkpoint.
        ends: the last step of each phase, which stays in the folder.
        is_past: whether a later one has begun.
    """

    number: int
    step: int | None
    position: Position | None
    ends: tuple[int, ...]
    is_past: bool

    def is_over(self, epochs: int, resume: str | None) -> bool:
        """Whether nothing of it is left to train.

        Args:
            epochs: the argument of `fit`.
            resume: the argument of `fit`.
        """
        if self.position is None or not self.position.progress.finished:
            return self.position is not None and self.is_past  # a callback stopped it, at a time limit say
        if self.position.run.ended_by is not None and resume != CONTINUE:
            return True
        return epochs <= self.position.progress.epoch


def present(directory: Path, epochs: int, resume: str | None) -> Phase:
    """The phase that a `fit` on a folder is now.

    Raises:
        ArgumentError: if it would train on although a later phase began from its result.
    """
    number = _DONE.get(directory, 0) + 1
    newest: dict[int, tuple[int, Position]] = {}
    for found, stored in stored_positions(directory):
        at = positions.read(stored, f"{directory}/{found}")
        newest.setdefault(at.run.phase, (found, at))
    later, ends = max(newest, default=0), tuple(last for last, _ in newest.values())
    step, position = newest.get(number, (None, None))
    phase = Phase(number, step, position, ends, later > number)
    if phase.is_past and not phase.is_over(epochs, resume):
        raise ArgumentError(
            f"{directory}, fit {number} of this script",
            got=f"{epochs} epochs, which are not trained yet, and a fit {later} that has begun",
            expected="epochs that were trained before a later fit on this folder began",
            fix="Take another folder, or delete the steps of the later fits.",
        )
    return phase


def ended(directory: Path) -> None:
    """A `fit` on a folder came to its end: the next one there is another phase."""
    _DONE[directory] = _DONE.get(directory, 0) + 1
