"""Callbacks for `model.fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.checks import is_count, require
from keras_flax_bridge.checkpoint.intervals import passes
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.checkpoint.restoring import stored_positions
from keras_flax_bridge.keras_internals import fitting
from keras_flax_bridge.training import positions
from keras_flax_bridge.training.hooks import around
from keras_flax_bridge.training.positions import Position
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.training.recording import Recorder
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Logs, PathLike


@words.doors(methods=False)
class TrainStateCheckpoint(keras.callbacks.Callback):
    """Saves the complete state of `model.fit`, and resumes from the newest checkpoint, bit for bit.

    Run the same script again, and `fit` resumes where it stopped: weights, moving statistics, slots, seeds,
    metrics in the middle of an epoch, the epoch, the batch in it and the order of shuffled arrays. The
    checkpoint is a `TrainState`: `restore`, `load_model` and `verify` read it.

    `fit` does not expose the position in its data. On resume, earlier batches are read again and skipped,
    from the same state of numpy's and Python's global generators, and callbacks don't see them again. So
    arrays, and all data that gives the same batches in each run, resume exactly. Other data gives a
    warning at the first batch that differs: use `train` with a Grain iterator. What other callbacks
    remember, such as the patience of EarlyStopping or the best value of ModelCheckpoint, comes back.

    A finished `fit` is not resumed: in the same process, the next `fit` continues from the model; in a
    new process, the result is restored, and a larger `epochs` trains further, unless EarlyStopping or
    TerminateOnNaN ended the run. `kfb.fit` also saves when an exception ends it.

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
            holds checkpoints that `fit` did not write; from the first save, if `keep_best` is no name in
            the logs, and none that validation could bring.
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
        self._call: fitting.Call | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._preemption = Preemption(self._is_fitting)

    # --- what Keras calls

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Opens the folder, restores the newest checkpoint, and begins to record."""
        self._end()  # of a `fit` that an exception ended
        fitted = self._fitted = self._model  # `model` brings the variables up to date
        self._manager = manager = self._open()
        call = self._call = fitting.Call.of(fitted)
        keras_internals.begin_fit_at(fitted, None)
        at = self._position()
        if at is not None:
            manager.restore(fitted)
        recorder = Recorder(
            fitted,
            manager,
            call,
            due=self._is_due,
            each_epoch=self._every is None,
            preemption=self._preemption,
        )
        if at is not None:
            self._resume(call, recorder, at, max(manager.saved))
        recorder.attach()
        around(call.callbacks, "on_train_end", None, self._over)
        self._unwatch = fitting.watch(fitted, recorder, call)
        self._preemption.begin()

    def _is_due(self, before: int, step: int) -> bool:
        return self._every is not None and passes(self._every, before, step)

    def _position(self) -> Position | None:
        """The position of the newest checkpoint, unless the model is already there or further."""
        directory = self._manager.directory
        if self._manager.latest_step is None:
            return None
        step, stored = next(stored_positions(directory), (None, None))
        at = positions.read(stored, f"{directory}, step {step}")
        seen = int(keras_internals.iterations(self._fitted.optimizer))
        ahead = seen > at.progress.iterations
        return None if ahead or (seen == at.progress.iterations and at.progress.finished) else at

    def _resume(self, call: fitting.Call, recorder: Recorder, at: Position, step: int) -> None:
        over = at.progress.finished and (
            at.run.ended_by is not None or at.progress.epoch >= call.callbacks.params["epochs"]
        )
        fitting.give_way(self._fitted)
        recorder.resume(at, step)
        if over:
            why = at.run.ended_by or f"{at.progress.epoch} epochs were trained before"
            keras_internals.begin_fit_at(self._fitted, call.callbacks.params["epochs"])
            warnings.warn(
                f"{self._manager.directory}: fit has nothing to train, it came to its end: {why}; "
                "pass more epochs, or another folder",
                stacklevel=2,
            )

    def _over(self, logs: Logs | None = None) -> None:
        self._end()

    # --- ending

    def _is_fitting(self, frame: Any) -> bool:
        """Whether the `fit` is among the callers: callbacks are not notified of an exception."""
        return self._call is not None and self._call.is_among(frame)

    def _end(self) -> None:
        """Lets go of the model and of the signals, and returns when the last checkpoint is on disk."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        self._unwatch()
        self._preemption.end()
        keras_internals.begin_fit_at(self._fitted, None)
        self._call = None
        manager.close()


if not TYPE_CHECKING:  # a module with a `__getattr__` would have any name

    def __getattr__(name):
        return words.missing_in_module("kfb.callbacks", name, globals())
