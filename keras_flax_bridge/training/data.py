"""The data of a training loop: batches over epochs, and the position in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from keras_flax_bridge.checkpoint import data_positions
from keras_flax_bridge.errors import StructureMismatchError


class Feed:
    """Batches from an iterator, or from an iterable once per epoch, with a position.

    The position is the epoch, the batch in it, and that of the iterator if it has one. If it has none,
    such as an iterator over a list, earlier batches are skipped on resume.
    """

    def __init__(self, data: Any):
        self.endless = hasattr(data, "__next__")
        if not self.endless and not hasattr(data, "__iter__"):
            raise StructureMismatchError(
                "data",
                got=f"a {type(data).__name__}",
                expected="an iterator of batches, or an iterable",
                fix="Pass a list of batches, a Grain dataset or iterator, or a data loader.",
            )
        self._data = data
        self.epoch = self.batch = 0
        self._batches = self._fresh()

    def _fresh(self) -> Iterator[Any]:
        return self._data if self.endless else iter(self._data)

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch, if the data has a length."""
        return len(self._data) if not self.endless and hasattr(self._data, "__len__") else None

    def __iter__(self) -> Iterator[Any]:
        """The remaining batches of this epoch."""
        for batch in self._batches:
            self.batch += 1
            yield batch

    def next_epoch(self) -> None:
        """Starts the next epoch; called at the end of one."""
        self.epoch, self.batch, self._batches = self.epoch + 1, 0, self._fresh()

    @property
    def restorable(self) -> bool:
        """Whether a position can be restored."""
        return not self.endless or data_positions.has_position(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position: epoch, batch, and the position of the inner iterator."""
        inner = (
            data_positions.get_position(self._batches) if data_positions.has_position(self._batches) else None
        )
        return {"epoch": self.epoch, "batch": self.batch, "inner": inner}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a position that `get_state` returned."""
        self.epoch, self.batch, self._batches = state["epoch"], state["batch"], self._fresh()
        if state["inner"] is not None:
            data_positions.set_position(self._batches, state["inner"])
        else:
            next(itertools.islice(self._batches, self.batch, self.batch), None)  # passes them over
