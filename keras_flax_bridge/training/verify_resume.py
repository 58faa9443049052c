"""Proves exact resume for a user's own model and data."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.checkpoint.matching import placement
from keras_flax_bridge.checkpoint.restoring import restore
from keras_flax_bridge.checkpoint.saving import save
from keras_flax_bridge.errors import BridgeError, printable, said
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.steps import make_train_step
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.paths import Flat, join_path
from keras_flax_bridge.tree.reports import Table, as_json, table_of
from keras_flax_bridge.tree.types import BatchIterator


class ResumeRow(NamedTuple):
    """A leaf that an interruption changed.

    Attributes:
        path: such as ``params/dense/kernel``.
    """

    path: str


@words.doors()
class ResumeReport(NamedTuple):
    """The result of `verify_resume`.

    Attributes:
        steps: steps before and after the interruption.
        leaves: how many leaves were compared.
        differing: paths of the leaves that differ in any bit, in the order of the state.

    Example:
        >>> print(ResumeReport((3, 3), 12, ("params/dense/kernel",)))
        3 steps, a new process, 3 steps: 1 of 12 leaves differ, first params/dense/kernel
    """

    steps: tuple[int, int]
    leaves: int
    differing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all leaves are equal bit for bit."""
        return not self.differing

    @property
    def rows(self) -> tuple[ResumeRow, ...]:
        """One row for each leaf that differs: its ``path``."""
        return tuple(map(ResumeRow, self.differing))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {"ok": self.ok, "steps": list(self.steps), "leaves": self.leaves, "rows": as_json(self.rows)}

    def __str__(self) -> str:
        first = f", first {self.differing[0]}" if self.differing else ""
        before, after = self.steps
        return printable(
            f"{before} steps, a new process, {after} steps: "
            f"{len(self.differing)} of {self.leaves} leaves differ{first}"
        )

    def _table(self) -> Table:
        return table_of(str(self), ("differs",), self.rows)

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


@words.door
def verify_resume(
    model_fn: Callable[[], keras.Model],
    data_fn: Callable[[], BatchIterator],
    *,
    steps: tuple[int, int] = (3, 3),
) -> ResumeReport:
    """Trains once uninterrupted and once interrupted, and compares the two bit for bit.

    Both runs begin with the same weights. One new process trains ``sum(steps)`` steps. Another trains
    ``steps[0]``, saves, and ends at once; a third restores state and data position and trains
    ``steps[1]``. All leaves of the two final states are compared: weights, slots, seeds, metrics.

    Args:
        model_fn: builds a compiled model. Like `data_fn` a function that a new process can import: at
            the top level of a module, with what runs it behind ``if __name__ == "__main__"``.
        data_fn: returns an iterator of batches: a Grain iterator, or one with `get_state` and `set_state`.
        steps: how many steps before and after the interruption.

    Returns:
        A report that names the leaves that differ; printed, it names the first.

    Raises:
        BridgeError: if one of the processes fails; its output has the reason.

    Example:
        >>> verify_resume(model_fn, data_fn).ok  # doctest: +SKIP
        True
    """
    if len(steps) != 2 or min(steps) < 1:
        raise BridgeError(
            "steps", got=repr(steps), expected="two numbers, 1 or more", fix="Pass steps=(3, 3)."
        )
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = Path(folder, "straight"), Path(folder, "broken")
        _in_a_new_process(_run, model_fn, data_fn, straight, sum(steps), "straight")
        _in_a_new_process(_run, model_fn, data_fn, broken, steps[0], "before the break")
        _in_a_new_process(_run, model_fn, data_fn, broken, sum(steps), "after the break")
        finals = [_leaves(path / "final" / str(sum(steps))) for path in (straight, broken)]
    differing = [join_path(p) for p, leaf in finals[0].items() if not _same(leaf, finals[1].get(p))]
    return ResumeReport(steps, len(finals[0]), tuple(differing))


def _in_a_new_process(target: Callable[..., Any], *args: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args[:-1])
    try:
        process.start()
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise BridgeError(
            "model_fn, data_fn",
            got=f"what a new process can't import ({said(error)})",
            expected="functions at the top level of a module",
            fix="Define them with def in a module, outside of other functions.",
        ) from error
    process.join()
    if process.exitcode != 0:
        raise BridgeError(
            f"the run {args[-1]}",
            got=f"exit code {process.exitcode}",
            expected="0",
            fix="See the output of the process. model_fn and data_fn must be importable by a new process.",
        )


def _run(model_fn: Callable[[], Any], data_fn: Callable[[], Any], folder: Path, steps: int) -> None:
    """Trains up to `steps` from the folder's newest step, and saves."""
    model, data = model_fn(), data_fn()
    with CheckpointManager(folder / "steps") as manager:
        state = TrainState.from_keras(model, batch=next(data_fn()))  # of a separate iterator
        start = folder.parent / "start"  # both runs begin with the same weights, seeded or not
        if start.exists():
            state = restore(start, state)
        else:
            save(start, state)
        train_step = make_train_step(model)
        if manager.latest_step is not None:
            state = manager.restore(state, data=data)
        while int(state.step) < steps:
            state, _ = train_step(state, next(data))
        manager.save(state, data=data)
    save(folder / "final" / str(steps), state)


def _leaves(path: Path) -> Flat:
    stored = orbax_io.Stored(path)
    return stored.load({place: placement(spec, None) for place, spec in stored.specs.items()})


def _same(a: Any, b: Any) -> bool:
    return b is not None and np.asarray(a).tobytes() == np.asarray(b).tobytes()
