"""Where a `fit` stands in its data, and how a resumed one comes there again."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

from keras_flax_bridge.checkpoint import checksums
from keras_flax_bridge.errors import printable
from keras_flax_bridge.keras_internals import loaders
from keras_flax_bridge.training import positions
from keras_flax_bridge.training.loaders import described, require_rows, rows
from keras_flax_bridge.training.positions import Position, Progress, Run


class Place:
    """The place of a `fit` in its data.

    Args:
        epochs: Keras's iterator over epochs.
        where: the folder of the run.

    Attributes:
        epoch: which one.
        batch: how many batches of it were trained on.
        to_pass: how many batches come that were trained on before the run was resumed.
        is_passing: whether the last batches were such.
    """

    def __init__(self, epochs: Any, where: Path):
        self.epoch = self.batch = self.to_pass = 0
        self.is_passing = False
        self._epochs, self._where = epochs, where
        self._pulled = 0
        self._iterator: Any = None  # over the data
        self._begun = self._candidate = positions.generators()
        self._last: list[Any] = []  # the batches that were trained on, or passed over, at once
        self._coming: list[Any] = []
        self._rows: int | None = None
        self._from: Position | None = None  # where this `fit` resumes
        self._later: positions.Generators | None = None

    # --- resuming

    def resume(self, position: Position) -> None:
        """Goes to the position of a checkpoint: what was trained on is passed over."""
        self._from, self.to_pass = position, position.progress.batch
        if position.now is not None:
            positions.set_generators(position.now)

    def give_way(self) -> None:
        """Another record resumes this `fit`."""
        self._from, self.to_pass = None, 0

    # --- epochs

    def begin(self, epoch: int) -> None:
        """An epoch begins."""
        self.epoch, self.batch = epoch, 0

    def began(self) -> None:
        """The callbacks heard of the epoch; its data is iterated over from now on."""
        self._candidate = positions.generators()
        at = self._from
        if at is None or at.progress.epoch != self.epoch:
            return
        if at.begun is not None and (self.to_pass or at.run.pulled):
            self._later = at.now if self.to_pass else self._candidate
            self._candidate = at.begun
            positions.set_generators(at.begun)

    def end(self) -> None:
        """The epoch is over."""
        self.begin(self.epoch + 1)
        if not loaders.serves_several_epochs(self._epochs):
            self._iterator, self._pulled = None, 0

    # --- batches

    def pulling(self, iterator: Any) -> None:
        """Before batches are taken."""
        at = self._from
        if iterator is not self._iterator:
            self._iterator, self._begun, self._pulled = iterator, self._candidate, 0
            if at is not None and at.progress.epoch == self.epoch and not self.batch:
                self._pass_earlier_epochs(iterator, max(at.run.pulled - at.progress.batch, 0))

    def _pass_earlier_epochs(self, iterator: Any, count: int) -> None:
        next(islice(iterator, count, count), None)
        self._pulled = count
        loaders.pulled_before(self._epochs, count)
        if not self.to_pass and self._later is not None:
            positions.set_generators(self._later)
            self._later = None

    def pulled(self, batches: list[Any]) -> None:
        """Batches were taken."""
        self._coming, self._last, self.is_passing = batches, [], False
        if self._rows is None:
            self._rows = rows(batches[0])
            if self._from is not None:
                require_rows(self._rows, self._from.run.rows, self._where)

    def passed(self, count: int) -> None:
        """Batches were passed over, by this record or by another."""
        self.is_passing, self._last = True, self._coming
        self._advance(count)
        if self.to_pass:
            self.to_pass = max(self.to_pass - count, 0)
            if not self.to_pass:
                self._arrived()

    def stepped(self, batch: Any) -> None:
        """A batch was trained on."""
        self._last.append(batch)
        self._advance(1)

    def _advance(self, count: int) -> None:
        self.batch += count
        self._pulled += count

    def _arrived(self) -> None:
        """All batches that were trained on before are passed over."""
        at = self._from
        assert at is not None
        if self._later is not None:
            positions.set_generators(self._later)
        if at.run.last is not None and at.run.last != checksums.fingerprint(self._last):
            warnings.warn(
                printable(
                    f"{self._where}: the data of epoch {at.progress.epoch} differs from before "
                    "the interruption, so this run trains on different batches than an uninterrupted one; "
                    "weights, optimizer and metrics are exact. fit can't set the position of such data: "
                    "kfb.train can, with a Grain iterator"
                ),
                stacklevel=2,
            )

    # --- what is stored

    def progress(self, **others: Any) -> Progress:
        """How far the `fit` came; others: what the data doesn't know."""
        numpy, python = self._begun
        return Progress(epoch=self.epoch, batch=self.batch, numpy=numpy, python=python, **others)

    def run(self, **others: Any) -> Run:
        """What else is known; others: what the data doesn't know."""
        return Run(
            pulled=self._pulled,
            last=checksums.fingerprint(self._last) if self._last and self.batch else None,
            rows=self._rows,
            data=described(loaders.loader(self._epochs)),
            **others,
        )
