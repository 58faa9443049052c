"""The data of a training loop: batches over epochs, and where in them the loop stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from keras_flax_bridge.checkpoint import data_positions
from keras_flax_bridge.errors import StructureMismatchError


class Feed:
    """Batches from an iterator, or from what gives one anew for each epoch; it can say where it is.

    Its position is the epoch, the batch in it, and the position of the iterator where it has one of its
    own. Where it has none, as one over a list, the batches before are passed over on resume.
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
        """Batches in an epoch, where the data says it."""
        return len(self._data) if not self.endless and hasattr(self._data, "__len__") else None

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of this epoch."""
        for batch in self._batches:
            self.batch += 1
            yield batch

    def next_epoch(self) -> None:
        """To be called when an epoch has ended."""
        self.epoch, self.batch, self._batches = self.epoch + 1, 0, self._fresh()

    @property
    def restorable(self) -> bool:
        """Whether a position can be come back to."""
        return not self.endless or data_positions.has_position(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position: epoch, batch, and that of the iterator inside."""
        inner = (
            data_positions.get_position(self._batches) if data_positions.has_position(self._batches) else None
        )
        return {"epoch": self.epoch, "batch": self.batch, "inner": inner}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave."""
        self.epoch, self.batch, self._batches = state["epoch"], state["batch"], self._fresh()
        if state["inner"] is not None:
            data_positions.set_position(self._batches, state["inner"])
        else:
            next(itertools.islice(self._batches, self.batch, self.batch), None)  # passes them over
