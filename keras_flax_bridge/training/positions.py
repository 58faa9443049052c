"""Where a `fit` stands in its epochs and its data: stored beside its state, and found again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.tree.untrusted import records, schema
from keras_flax_bridge.tree.untrusted.records import Record, field

_FIX = "Take another step, or another folder: fit did not write this one."


class Generators(NamedTuple):
    """The states of the global generators of numpy and Python, as JSON types: `fit` shuffles from these."""

    numpy: Sequence[Any]
    python: Sequence[Any]


def generators() -> Generators:
    """The present states of the global generators."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return Generators([name, [int(key) for key in keys], *rest], [version, list(words), gauss])


def set_generators(states: Generators) -> None:
    """Sets the global generators.

    Raises:
        CorruptCheckpointError: if these are no states of generators.
    """
    try:
        name, keys, *rest = states.numpy
        version, words, gauss = states.python
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        random.setstate((version, tuple(words), gauss))
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptCheckpointError(
            "data/json/fit/numpy, python",
            got=f"no states of random generators: {type(error).__name__}",
            expected="those of numpy and Python",
            fix=_FIX,
        ) from error


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """How far `fit` came; the first versions write these fields and take no others.

    Attributes:
        epoch: which one.
        batch: how many batches of this epoch were trained on.
        iterations: of the optimizer.
        finished: whether `fit` came to its end.
        batches: a fingerprint of the batches that come next, of the first versions.
        numpy: numpy's global generator when the iterator over the data began.
        python: Python's.
    """

    epoch: int = field(schema.whole())
    batch: int = field(schema.whole())
    iterations: int = field(schema.whole())
    finished: bool = field(schema.flag)
    batches: int | None = field(schema.optional(schema.whole()), default=None)
    numpy: Sequence[Any] = field(schema.list_of(schema.anything))
    python: Sequence[Any] = field(schema.list_of(schema.anything))


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """What else is known of a `fit`.

    Attributes:
        phase: its number among those on one folder.
        ended_by: the class of the callback that ended it; None where it trained all its epochs.
        pulled: how many batches were taken from the iterator, which may serve several epochs.
        last: a fingerprint of the last batches that were trained on.
        rows: how many rows the first batch had.
        data: what the loader says of itself: its kind, its batch size, its number of batches.
        numpy: numpy's global generator at this position; None where that is the one of `Progress`.
        python: Python's.
    """

    phase: int = field(schema.whole(1), default=1)
    ended_by: str | None = field(schema.text, default=None)
    pulled: int = field(schema.whole(), default=0)
    last: int | None = field(schema.whole(), default=None)
    rows: int | None = field(schema.whole(), default=None)
    data: Mapping[str, Any] | None = field(schema.table_of(schema.anything), default=None)
    numpy: Sequence[Any] | None = field(schema.list_of(schema.anything), default=None)
    python: Sequence[Any] | None = field(schema.list_of(schema.anything), default=None)


class Position(NamedTuple):
    """The position of a `fit`, in the form of an iterator with `get_state`.

    Attributes:
        progress: how far it came; generators are empty lists where another loop wrote the checkpoint.
        run: what else is known.
    """

    progress: Progress
    run: Run

    def get_state(self) -> dict[str, Any]:
        """The position as JSON types, in a form that `train` and the first versions read as well."""
        progress = self.progress
        return {
            "epoch": progress.epoch,
            "batch": progress.batch,
            "inner": None,
            "finished": progress.finished,
            "fit": records.content(progress),
            "run": records.to_json(self.run),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Is there for the protocol: a position is read with `read`."""

    @property
    def begun(self) -> Generators | None:
        """The generators when the iterator over the data began, where they are known."""
        return Generators(self.progress.numpy, self.progress.python) if self.progress.numpy else None

    @property
    def now(self) -> Generators | None:
        """The generators at this position, where they are known."""
        if self.run.numpy is None or self.run.python is None:
            return self.begun
        return Generators(self.run.numpy, self.run.python)


def read(stored: Any, where: str) -> Position:
    """The position that a checkpoint holds, of `fit` or of `train`.

    Args:
        stored: the position of its data, as JSON types; None where there is none.
        where: the checkpoint, for errors.

    Raises:
        CheckpointError: if the checkpoint holds no position.
        CorruptCheckpointError: if it is malformed.
    """
    if not isinstance(stored, Mapping) or not {"fit", "epoch"} & stored.keys():
        raise CheckpointError(
            where,
            got="checkpoints that were not written by fit or train",
            expected="checkpoints of kfb.fit, kfb.train or TrainStateCheckpoint, or an empty folder",
            fix="Pass another folder; kfb.restore(directory, model) before fit loads their values.",
        )
    run = _record(Run, stored.get("run", {}), f"{where}, data/json/run")
    if "fit" in stored:
        return Position(_record(Progress, stored["fit"], f"{where}, data/json/fit"), run)
    whole = {name: stored.get(name) for name in ("epoch", "batch")}
    plain: dict[str, Any] = {**whole, "iterations": 0, "numpy": [], "python": []}
    plain["finished"] = stored.get("finished") is True
    return Position(_record(Progress, plain, f"{where}, data/json"), run)


def _record(kind: Any, found: Any, where: str) -> Any:
    return records.from_json(kind, found, where, fix=_FIX, error=CorruptCheckpointError)
