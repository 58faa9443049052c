"""Saves the run of a `fit` while it goes, and lets a later one go on from there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import callback_memory, orbax_io
from keras_flax_bridge.checkpoint.callback_memory import Memory
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.keras_internals import fitting
from keras_flax_bridge.keras_internals.callback_hooks import overrides
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training import positions
from keras_flax_bridge.training.data_place import Place
from keras_flax_bridge.training.endings import ended_by
from keras_flax_bridge.training.hooks import around, muted
from keras_flax_bridge.training.positions import Position
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.training.undoing import Undo


class Recorder:
    """The record of one `fit`: where it stands, saved when that is due.

    Args:
        model: the model that trains.
        manager: where checkpoints go.
        call: Keras's `fit`, whose callbacks have heard of the beginning.
        due: whether a save is due within an epoch, by the step before and the step now.
        each_epoch: whether one is due at the end of each epoch.
        preemption: watches for signals.
        phase: the number of this `fit` among those on the folder.

    Attributes:
        step: the number of the checkpoint that would be written now.
        start: that with which this `fit` began.
    """

    def __init__(
        self,
        model: Any,
        manager: CheckpointManager,
        call: fitting.Call,
        *,
        due: Callable[[int, int], bool],
        each_epoch: bool,
        preemption: Preemption,
        phase: int = 1,
    ):
        self._model, self._manager = model, manager
        self._list, self._evaluates = call.callbacks, call.evaluates
        self._place = Place(call.iterator, manager.directory)
        self._due, self._each_epoch, self._phase = due, each_epoch, phase
        self._preemption = preemption
        self.step = self.start = max(_iterations(model), manager.latest_step or 0)
        self._wanted = False  # whether to save before the next batch
        self._ready: Any = None  # the checkpoint that is written then
        self._logs: Mapping[str, Any] = {}
        self._before: Memory | None = None  # what callbacks remember when training begins
        self._held: Memory | None = None  # what callbacks remembered before the hook that runs now
        self._metrics: list[Any] | None = None  # of training, while evaluation uses their variables
        self._is_unfinished = False  # whether the checkpoint is of a `fit` that did not come to its end
        self._memory = Memory()
        self._before_step = self.step
        self._beginning: list[Any] = []  # callbacks that hear of a batch before it is trained on
        self._undo: Undo | None = None  # what hooks may have changed that will be called once more

    # --- resuming

    def resume(self, position: Position, step: int, *, again: bool = False) -> None:
        """Goes on where a checkpoint was written; the model holds its values already.

        Args:
            position: of the checkpoint.
            step: its number.
            again: whether its epoch is begun again, so that nothing of the data is passed over.
        """
        self.step = self.start = step
        self._place.begin(position.progress.epoch)
        keras_internals.begin_fit_at(self._model, position.progress.epoch)
        self._is_unfinished = not position.progress.finished
        self._memory = orbax_io.memory(self._manager.directory / str(step))
        if again:
            return
        self._metrics_then = [e.variable.value for e in keras_internals.collect(self._model).metrics]
        self._place.resume(position)
        if self._place.to_pass:
            muted(self._list, lambda: self._place.to_pass > 0)

    def _put_memory(self) -> None:
        where = f"{self._manager.directory}/{self.step}"
        callback_memory.put_back(self._list.callbacks, self._memory, where)

    def _put_metrics(self) -> None:
        """Metrics in the middle of an epoch: `fit` resets them at its beginning."""
        entries = keras_internals.collect(self._model).metrics
        for entry, value in zip(entries, self._metrics_then, strict=True):
            entry.variable.assign(value)
        self._logs = self._model.get_metrics_result()

    # --- what Keras's list of callbacks is told, before or after the callbacks

    def attach(self) -> None:
        """From now on the list of callbacks tells this record what happens."""
        self._beginning = [one for one in self._list.callbacks if overrides(one, "on_train_batch_begin")]
        around(self._list, "on_epoch_begin", self.epoch_begins, self.epoch_began)
        around(self._list, "on_train_batch_begin", self.batch_begins)
        around(self._list, "on_train_batch_end", None, self.batch_ended)
        around(self._list, "on_test_begin", self.test_begins)
        around(self._list, "on_epoch_end", self.epoch_ends, self.epoch_ended)
        around(self._list, "on_train_end", self.train_ends, self.train_ended)

    def epoch_begins(self, epoch: int, logs: Any = None) -> None:
        """Before callbacks hear of an epoch."""
        if self._before is None:
            self._before = callback_memory.remembered(self._list.callbacks)
            self._put_memory()
        self._held, self._undo = self._remembered(), Undo(self._model)
        self._place.begin(epoch)
        self._metrics = None

    def epoch_began(self, epoch: int, logs: Any = None) -> None:
        """After they heard of it."""
        if self._place.to_pass:  # the hooks of this epoch did all that before
            assert self._undo is not None
            self._undo.variables()
            self._put_memory()
            self._put_metrics()
        self._place.began()

    def batch_begins(self, batch: int, logs: Any = None) -> None:
        """Before callbacks hear of a batch."""
        if self._wanted and not self._place.to_pass:
            self._ready = self._entry()  # written once there is such a batch
        if self._beginning and self._undo is None:
            self._undo = Undo(self._model, self._beginning, draws=False)

    def batch_ended(self, batch: int, logs: Any = None) -> None:
        """After callbacks heard that a batch ended."""
        if self._place.is_passing:
            return
        self._logs = dict(logs or {})
        self._wanted |= self._preemption.save_asked() or self._due(self._before_step, self.step)
        if self._preemption.came(self.step):
            self._save(rescuing=True)
            self._manager.wait()
            sys.exit(0)

    def test_begins(self, logs: Any = None) -> None:
        """Before evaluation, which uses the variables of the metrics."""
        self._metrics = [entry.variable.value for entry in keras_internals.collect(self._model).metrics]
        self._held, self._undo = self._remembered(), Undo(self._model, evaluates=True)

    def epoch_ends(self, epoch: int, logs: Any = None) -> None:
        """Before callbacks hear of the end of an epoch."""
        self._ready = None
        self._held = self._held or self._remembered()
        evaluated = self._undo if self._metrics is not None else None
        self._undo = Undo(self._model, evaluated=evaluated)
        self._logs = dict(logs or {})

    def epoch_ended(self, epoch: int, logs: Any = None) -> None:
        """After they heard of it; the last epoch is saved with what callbacks do at the end of training."""
        self._held = self._metrics = self._undo = None
        self._place.end()
        is_last = self._model.stop_training or self._place.epoch >= self._list.params["epochs"]
        if (self._each_epoch or self._wanted) and not is_last:
            self._save()

    def train_ends(self, logs: Any = None) -> None:
        """Before callbacks hear of the end of training."""
        if self._before is None:  # no epoch was left
            self._put_memory()
        self._held, self._undo = self._remembered(), Undo(self._model)

    def train_ended(self, logs: Any = None) -> None:
        """After callbacks heard of the end of training."""
        self._held = self._undo = None
        if self.step > self.start or self._manager.latest_step is None or self._is_unfinished:
            self._save(last=True)

    def _ended_by(self) -> str | None:
        return ended_by(self._model.stop_training, self._list.callbacks, self._logs)

    # --- what the train function is told

    def pulling(self, iterator: Any) -> None:
        """Before batches are taken."""
        self._place.pulling(iterator)

    def pulled(self, batches: list[Any]) -> Any:
        """Whether batches were trained on before: then the logs in place of theirs."""
        if self._ready is not None:
            self._write(*self._ready)
        self._before_step = self.step
        self._place.pulled(batches)
        return self._logs if self._place.to_pass else None

    def passed(self, count: int) -> None:
        """Batches were passed over, by this record or by another."""
        self._place.passed(count)

    def give_way(self) -> None:
        """Another record resumes this `fit`."""
        self._place.give_way()
        self.step = self.start = max(self.step, _iterations(self._model))

    def stepped(self, batch: Any) -> None:
        """A step is done."""
        self._held = self._undo = None
        self.step += 1
        self._place.stepped(batch)

    # --- saving

    def failed(self) -> None:
        """Saves the last whole step after an exception ended the `fit`."""
        if self._undo is not None:
            self._undo.callbacks()
        if self.step > self.start:
            self._save(rescuing=True)
        if self._metrics is not None and self._undo is not None:
            self._undo.variables()  # the model is as it was saved, before its evaluation

    def _remembered(self) -> Memory:
        return callback_memory.remembered(self._list.callbacks, self._before)

    def _save(self, *, last: bool = False, rescuing: bool = False) -> None:
        self._write(*self._entry(last=last), rescuing=rescuing)

    def _entry(self, *, last: bool = False) -> tuple[TrainState, Position, Mapping[str, Any], Memory]:
        """All that a checkpoint holds."""
        if last and self.step in self._manager.saved:
            self.step += 1  # it was saved before the end was known
        memory = self._held if self._held is not None else self._remembered()
        with keras.StatelessScope(self._values()):
            state = TrainState.from_keras(self._model).replace(step=np.int32(self.step))
            position = self._position(last)
        if last:
            self._manager.keep([self.step])
        return state, position, self._logs, memory

    def _write(
        self,
        state: TrainState,
        position: Position,
        logs: Mapping[str, Any],
        memory: Memory,
        *,
        rescuing: bool = False,
    ) -> None:
        """Saves; what is rescued is saved without the name that `keep_best` waits for."""
        self._wanted, self._ready = False, None
        given: dict[str, Any] = {"data": position, "logs": logs, "callbacks": memory}
        evaluated = not (self._evaluates or rescuing)
        self._manager.save(state, **given, evaluated=evaluated, now=True)

    def _values(self) -> list[tuple[Any, Any]]:
        """Variables whose values `fit` holds, or that evaluation uses, with these values."""
        values = fitting.held(self._model)
        if self._metrics is not None:
            entries = keras_internals.collect(self._model).metrics
            values += [(e.variable, value) for e, value in zip(entries, self._metrics, strict=True)]
        return values + self._undo.values() if self._undo is not None else values

    def _position(self, last: bool) -> Position:
        now = self._undo.generators() if self._undo is not None else positions.generators()
        ended = self._ended_by() if last else None
        progress = self._place.progress(
            iterations=_iterations(self._model),
            finished=last and (ended is not None or self._place.epoch >= self._list.params["epochs"]),
        )
        run = self._place.run(phase=self._phase, ended_by=ended, numpy=now.numpy, python=now.python)
        return Position(progress, run)


def _iterations(model: Any) -> int:
    return 0 if model.optimizer is None else int(keras_internals.iterations(model.optimizer))
