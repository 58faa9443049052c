"""Callbacks for `model.fit`."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import checksums
from keras_flax_bridge.checkpoint.checks import is_count, require
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.checkpoint.restoring import stored_position
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Logs, PathLike
from keras_flax_bridge.tree.untrusted import records, schema
from keras_flax_bridge.tree.untrusted.records import Record, field


@dataclass(frozen=True, kw_only=True)
class _Position(Record):
    """The progress of `fit`, stored beside the state as the position of its data.

    Attributes:
        epoch: which one.
        batch: how many batches of this epoch were trained on.
        iterations: of the optimizer.
        finished: whether `fit` came to its end.
        batches: a fingerprint of the batches that come next; None where none come.
        numpy: numpy's global generator at the beginning of the epoch, from which `fit` shuffles.
        python: Python's.
    """

    epoch: int = field(schema.whole())
    batch: int = field(schema.whole())
    iterations: int = field(schema.whole())
    finished: bool = field(schema.flag)
    batches: int | None = field(schema.optional(schema.whole()), default=None)
    numpy: tuple[Any, ...] = field(schema.list_of(schema.anything), read=tuple, write=list)
    python: tuple[Any, ...] = field(schema.list_of(schema.anything), read=tuple, write=list)


class _Place:
    """A position in the form of an iterator with `get_state` and `set_state`."""

    def __init__(self, position: _Position | None = None):
        self.position = position

    def get_state(self) -> dict[str, Any]:
        assert self.position is not None
        return {"fit": records.content(self.position)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.position = _read(state["fit"], "data/json/fit")


def _read(found: Any, where: str) -> _Position:
    fix = "Take another step, or another folder: fit did not write this one."
    return records.from_json(_Position, found, where, fix=fix, error=CorruptCheckpointError)


@words.doors(methods=False)
class TrainStateCheckpoint(keras.callbacks.Callback):
    """Saves the complete state of `model.fit`, and resumes from the newest checkpoint, bit for bit.

    Run the same script again, and `fit` resumes where it stopped: weights, moving statistics, slots, seeds,
    metrics in the middle of an epoch, the epoch, the batch in it and the order of shuffled arrays. The
    checkpoint is a `TrainState`: `restore`, `load_model` and `verify` read it.

    `fit` does not expose the position in its data. On resume, earlier batches are read again and skipped,
    from the same state of numpy's and Python's global generators; other callbacks see them again. So
    arrays, and all data that gives the same batches in each run, resume exactly. Other data, such as a
    generator in its second epoch, gives a warning at the first batch that differs: use `train` with a
    Grain iterator. What other callbacks remember, such as the patience of EarlyStopping, is reset; put
    this callback last.

    A finished `fit` is not resumed: in the same process, the next `fit` continues from the model; in a
    new process, the result is restored, and a larger `epochs` trains further.

    On SIGTERM the current batch finishes, a checkpoint is written, and the process exits with code 0.

    Args:
        directory: the root folder, one for each run; created if it doesn't exist.
        save_freq: ``"epoch"``, or the number of batches between saves.
        max_to_keep: how many of the newest steps stay; None for all.
        keep_best: a name in the logs, such as ``"val_loss"``; see `CheckpointManager`.
        keep_every: steps that are multiples of this number stay as well.
        layout: ``"tree"`` or ``"packed"``; see `CheckpointManager`.

    Raises:
        CheckpointError: if an argument is not one of the above; from `fit`, if a save failed or the folder
            holds checkpoints that `fit` did not write.
        StructureMismatchError: from `fit`, if the checkpoint is of another model or optimizer.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> folder, x = tempfile.mkdtemp(), np.ones((12, 4))
        >>> saver = TrainStateCheckpoint(folder)
        >>> history = model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[saver])
        >>> CheckpointManager(folder).all_steps()
        [3, 6]
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        save_freq: str | int = "epoch",
        max_to_keep: int | None = 3,
        keep_best: str | tuple[str, str] | None = None,
        keep_every: int | None = None,
        layout: str = "tree",
    ):
        super().__init__()
        allowed = save_freq == "epoch" or is_count(save_freq)
        fix = "save_freq='epoch' saves after every epoch."
        require(allowed, "save_freq", repr(save_freq), "'epoch', or a number of batches, 1 or more", fix)
        self._open = partial(
            CheckpointManager,
            directory,
            max_to_keep=max_to_keep,
            keep_best=keep_best,
            keep_every=keep_every,
            layout=layout,
        )
        self._open().close()  # raises early if an argument is wrong
        self._every = save_freq if isinstance(save_freq, int) else None
        self._manager: Any = None
        self._preemption = Preemption(self._is_fitting)

    # --- what Keras calls

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the folder, and restores the newest checkpoint."""
        if self._manager is not None:  # a `fit` that an exception ended
            self._manager.close()
        self._manager = self._open()
        # Keras's `model` brings the variables up to date, which inside of a step would be wrong
        self._fitted = self.model
        self._epoch = self._batch = 0
        self._due = False  # whether to save before the next batch
        self._logs: Mapping[str, Any] = {}
        self._from: _Position | None = None  # the position at which this `fit` resumes
        self._to_pass, self._passing = 0, False  # batches that were trained on before
        self._metrics: list[Any] = []
        keras_internals.begin_fit_at(self._fitted, None)
        self._step = max(self._seen(), self._manager.latest_step or 0)
        if self._manager.latest_step is not None:
            self._go_on()
        self._start = self._step
        self._function = _unwatched(self._fitted.train_function)
        self._fitted.train_function = _Watched(self._function, self._train)
        self._preemption.end()  # of a `fit` that an exception ended
        self._preemption.begin()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Records the generators that shuffle the epoch, or restores them on resume."""
        if self._from is not None and self._from.epoch == epoch:
            _set_generators(self._from)
            self._put_metrics()
        self._generators = _generators()
        self._epoch, self._batch, self._passing = epoch, 0, False

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Counts batches; stops the process after SIGTERM."""
        if self._passing:
            return
        before, self._logs = self._step, dict(logs or {})
        self._step += self._pulled
        self._batch += self._pulled
        self._due |= self._every is not None and self._step // self._every > before // self._every
        if self._preemption.came(self._step):
            self._fitted.jax_state_sync()  # fit's own values into the variables
            try:
                self._save(None)
            finally:  # where it raises what an earlier save met, its own was started
                self._end()
            sys.exit(0)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Keeps the logs for the checkpoint, which includes changes by later callbacks."""
        self._logs = dict(logs or {})
        self._due |= self._every is None and self._step > self._start

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Saves the result, and returns when it is on disk."""
        try:
            if self._step > self._start or self._manager.latest_step is None:
                self._epoch, self._batch, self._generators = self._epoch + 1, 0, _generators()
                self._save(None, finished=True)
            elif self._from is not None and self._from.finished:
                warnings.warn(
                    f"{self._manager.directory}: {self._from.epoch} epochs were trained before, so that fit "
                    "had none left to train; pass more epochs, or another folder",
                    stacklevel=2,
                )
        finally:  # where a save raises what an earlier one met, its own was started
            self._end()

    # --- what happens at a batch

    def _train(self, state: Any, iterator: Iterator[Any]) -> Any:
        """Replaces the train function: sees the batches, skips earlier ones, saves."""
        batches = list(islice(iterator, self._fitted.steps_per_execution))
        if not batches:
            return self._function(state, iterator)  # which reports it in the form that Keras expects
        if self._to_pass > 0:
            self._passing = True
            self._to_pass -= len(batches)
            return self._logs, state
        if self._from is not None:
            self._check(self._from, batches)
            self._from = None
        if self._due:
            with keras.StatelessScope(self._held(state)):
                self._save(batches)
        self._passing, self._pulled = False, len(batches)
        return self._function(state, iter(batches))

    def _check(self, at: _Position, batches: list[Any]) -> None:
        """Warns if the first batches after the interruption differ from those of an uninterrupted run."""
        if at.epoch != self._epoch:
            return
        self._batch = at.batch
        if at.batches not in (None, checksums.fingerprint(batches)):
            warnings.warn(
                f"{self._manager.directory}: the data of epoch {at.epoch} differs from before the "
                "interruption, so this run trains on different batches than an uninterrupted one; weights, "
                "optimizer and metrics are exact. fit can't set the position of such data: kfb.train can, "
                "with a Grain iterator",
                stacklevel=2,
            )

    # --- saving and restoring

    def _go_on(self) -> None:
        """Restores the newest checkpoint, unless the model is already there or further."""
        position = stored_position(self._manager.directory)
        stored = position.get("fit") if isinstance(position, dict) else None
        if stored is None:
            raise CheckpointError(
                str(self._manager.directory),
                got="checkpoints that were not written by fit",
                expected="checkpoints of a TrainStateCheckpoint, or an empty folder",
                fix="Pass another folder; kfb.restore(directory, model) before fit loads their values.",
            )
        seen = self._seen()
        at = _read(stored, f"{self._manager.directory}, data/json/fit")
        if seen > at.iterations or (seen == at.iterations and at.finished):
            return
        place = _Place()
        self._manager.restore(self._fitted, data=place)
        assert place.position is not None
        self._from, self._to_pass = place.position, place.position.batch
        self._step = max(self._manager.saved)
        self._metrics = [
            np.asarray(entry.variable.value) for entry in keras_internals.collect(self._fitted).metrics
        ]
        keras_internals.begin_fit_at(self._fitted, self._from.epoch)

    def _put_metrics(self) -> None:
        """Metrics in the middle of an epoch: `fit` resets them at its beginning."""
        if self._to_pass:
            for entry, value in zip(
                keras_internals.collect(self._fitted).metrics, self._metrics, strict=True
            ):
                entry.variable.assign(value)
            self._logs = self._fitted.get_metrics_result()

    def _held(self, state: Any) -> list[tuple[Any, Any]]:
        """The variables with their values, which `fit` removes from them while it trains."""
        model = self._fitted
        trees = (model.trainable_variables, model.non_trainable_variables)
        variables = (*trees, model.optimizer.variables, model.metrics_variables)
        return list(zip(chain(*variables), chain(*state), strict=True))

    def _is_fitting(self, frame: Any) -> bool:
        """Whether the model's `fit` is among the callers: callbacks are not notified of an exception."""
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is self._fitted:
                return True
            frame = frame.f_back
        return False

    def _seen(self) -> int:
        return int(keras_internals.iterations(self._fitted.optimizer))

    def _save(self, batches: list[Any] | None, *, finished: bool = False) -> None:
        self._due = False
        pulled = None if batches is None else checksums.fingerprint(batches)
        numpy, python = self._generators
        position = _Position(
            epoch=self._epoch,
            batch=self._batch,
            iterations=self._seen(),
            finished=finished,
            batches=pulled,
            numpy=numpy,
            python=python,
        )
        state = TrainState.from_keras(self._fitted).replace(step=np.int32(self._step))
        self._manager.save(state, data=_Place(position), logs=self._logs, now=True)

    def _end(self) -> None:
        """Restores the train function and signal handler, and returns when the last checkpoint is on disk."""
        self._preemption.end()
        self._fitted.train_function = self._function
        keras_internals.begin_fit_at(self._fitted, None)
        manager, self._manager = self._manager, None
        manager.close()


class _Watched:
    """A train function wrapped by another."""

    def __init__(self, function: Callable[..., Any], watch: Callable[..., Any]):
        self.function = function
        self._watch = watch

    def __call__(self, state: Any, iterator: Iterator[Any]) -> Any:
        return self._watch(state, iterator)


def _unwatched(function: Any) -> Any:
    return function.function if isinstance(function, _Watched) else function


def _generators() -> tuple[Any, Any]:
    """The states of numpy's and Python's global generators, as JSON types."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return [name, [int(key) for key in keys], *rest], [version, list(words), gauss]


def _set_generators(position: _Position) -> None:
    name, keys, *rest = position.numpy
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    version, words, gauss = position.python
    random.setstate((version, tuple(words), gauss))


if not TYPE_CHECKING:  # a module with a `__getattr__` would have any name

    def __getattr__(name):
        return words.missing_in_module("kfb.callbacks", name, globals())
