"""The data of a training loop: batches over epochs, and the position in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import data_positions
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.training.loaders import Loader
from keras_flax_bridge.tree.types import Logs

Prepare = Callable[[Iterable[Any]], Iterator[Any]]


class Feed:
    """Batches from an iterator, or from an iterable once per epoch, with a position.

    The position is the epoch, the batches of it that were trained on, and the position of the iterator if it
    has one. If it has none, such as an iterator over a list, these batches are skipped on resume. A batch
    that was read and not trained on comes again.

    Args:
        data: the batches.
        positioned: whether the position will be asked for.
        prepare: what is done to the batches of an epoch before they are trained on.

    Attributes:
        epoch: which one.
        batch: how many batches of it were trained on.
        logs: of the last of these batches.
        ended_by: the class of the callback that ended the run for good.
        finished: whether the run came to its end, so that its state is the result.
    """

    def __init__(self, data: Any, *, positioned: bool = True, prepare: Prepare = iter):
        self.endless = hasattr(data, "__next__")
        if not self.endless and not hasattr(data, "__iter__"):
            raise StructureMismatchError(
                "data",
                got=f"a {type(data).__name__}",
                expected="an iterator of batches, or an iterable",
                fix="Pass a list of batches, a Grain dataset or iterator, or a data loader.",
            )
        self._data, self._positioned, self._prepare = data, positioned, prepare
        self.epoch = self.batch = 0
        self.logs: Logs = {}
        self.ended_by: str | None = None
        self.finished = False
        self._stored: dict[str, Any] = {}
        self._loader = Loader.of(data, self.length)
        self._begin(self._fresh())

    def _fresh(self) -> Iterator[Any]:
        return self._data if self.endless else iter(self._data)

    def _begin(self, batches: Iterator[Any]) -> None:
        """Reads from an iterator from now on, which stands where training does."""
        self._batches = batches
        self._anchor, self._since, self._read = self._inner(), 0, 0

    def _inner(self) -> dict[str, Any] | None:
        has_one = self._positioned and data_positions.has_position(self._batches)
        return data_positions.get_position(self._batches) if has_one else None

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch, if the data has a length."""
        return len(self._data) if not self.endless and hasattr(self._data, "__len__") else None

    def __iter__(self) -> Iterator[Any]:
        """The remaining batches of this epoch; `done` is to be called when one was trained on."""
        return self._prepare(self._remaining())

    def _remaining(self) -> Iterator[Any]:
        while self.batch != self.length:  # then the end is known before the data is exhausted
            self._read += 1  # before it is read: an iterator that fails may have moved on
            try:
                batch = next(self._batches)
            except StopIteration:
                self._read -= 1
                return
            self._loader.check(batch, self._batches)
            yield batch

    def done(self) -> None:
        """Counts a batch that was trained on."""
        self.batch += 1
        self._since += 1

    def next_epoch(self) -> None:
        """Starts the next epoch; called at the end of one."""
        self.epoch, self.batch, self.logs = self.epoch + 1, 0, {}
        self._begin(self._fresh())

    @property
    def restorable(self) -> bool:
        """Whether a position can be restored."""
        return not self.endless or data_positions.has_position(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON types, in a form that `fit` reads as well."""
        if self._read == self._since:  # no batch was read in vain
            self._anchor, self._since, self._read = self._inner(), 0, 0
        logs = keras_internals.as_numbers(self.logs)  # as text: JSON has no NaN
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "inner": self._anchor,
            "skip": self._since,
            "logs": {name: repr(value) for name, value in logs.items() if type(value) is float},
            "finished": self.finished,
            "run": {"ended_by": self.ended_by} if self.ended_by else {},
            "loader": self._loader.content(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes a position that `get_state` returned, or that `fit` wrote; `resume` goes there."""
        self._stored = state

    def resume(self, *, restart: bool = False) -> None:
        """Goes to the position that was restored.

        Args:
            restart: whether to begin its epoch again, in other data.

        Raises:
            ArgumentError: if it is a position in other data.
        """
        state = self._stored
        self.epoch = state["epoch"]
        self.ended_by = state.get("run", {}).get("ended_by")
        self.finished = state.get("finished", state.get("fit", {}).get("finished", False))
        if restart:
            self._begin(self._fresh())
            return
        self._loader.require_same(state.get("loader"))
        self.batch = state["batch"]
        self.logs = {name: float(text) for name, text in state.get("logs", {}).items()}
        batches = self._fresh()
        if state["inner"] is not None:
            data_positions.set_position(batches, state["inner"])
        skipped = self.batch if state["inner"] is None else state.get("skip", 0)
        self._begin(self._passed_over(batches, skipped))

    def _passed_over(self, batches: Iterator[Any], count: int) -> Iterator[Any]:
        for batch in itertools.islice(batches, count):
            self._loader.require_known(batch)
        return batches
