"""`train`: the loop around a train step, with Keras's progress bar and callbacks, saving and resuming."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.errors import BridgeError, StructureMismatchError
from keras_flax_bridge.state import lazy_trees
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.trees import WEIGHTS
from keras_flax_bridge.training.data import Feed
from keras_flax_bridge.training.history import History
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.leaves import owned
from keras_flax_bridge.tree.paths import fill_tree
from keras_flax_bridge.tree.types import Batch, BatchIterator, Logs, Step


@words.door
def train(
    state: TrainState,
    train_step: Step[TrainState],
    data: Iterable[Batch] | BatchIterator,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    eval_step: Step[TrainState] | None = None,
    eval_data: Iterable[Batch] | None = None,
    manager: CheckpointManager | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    verbose: int = 1,
) -> tuple[TrainState, History]:
    """Trains until `steps` or `epochs` are reached; resumes from the manager's newest checkpoint.

    Metrics are reset at each epoch. With a manager, its newest checkpoint is restored first, with the
    position in the data; checkpoints are written every ``save_every`` steps, and at the end. On
    SIGTERM the current step finishes, a checkpoint is written, and the process exits with code 0; under
    `jax.distributed` all processes stop after the same step. Ctrl-C loses nothing: a checkpoint is written,
    and the state that was passed in becomes the last one reached.

    Keras callbacks see the model of the state, which is brought up to date before the end of each epoch,
    and a learning rate that they set takes effect, as do weights that they set at the end of training
    (EarlyStopping with ``restore_best_weights``).

    Args:
        state: the initial state, if the manager has no checkpoint.
        train_step: ``train_step(state, batch) -> (state, logs)``, of `make_train_step` or your own.
        data: batches: an iterable that can be read again in each epoch, such as a list or a Grain dataset,
            or an iterator, which needs `steps`. To resume, an iterator needs `get_state` and `set_state`.
        steps: train until `state.step` is this number.
        epochs: how many passes over `data`, counted over all resumed runs.
        eval_step: ``eval_step(state, batch) -> (state, logs)``; runs over `eval_data` after each epoch.
        eval_data: batches to evaluate on; its logs come as ``val_...``.
        manager: where checkpoints are.
        callbacks: Keras callbacks, except those that save the model or need its `fit`.
        verbose: 0 for no output, 1 for Keras's progress bar, 2 for a line an epoch.

    Returns:
        The state, and Keras's History of this process's epochs, such as ``history.history["loss"]``;
        ``history.plot()`` draws its curves.

    Raises:
        StructureMismatchError: if the wrong one or neither of `steps` and `epochs` is given, or if the data
            can't be iterated over or resumed.
        CheckpointError: if a checkpoint can't be read or written.

    Example:
        >>> import keras, numpy as np
        >>> from keras_flax_bridge import make_train_step
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> batches = [(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"))] * 5
        >>> state = TrainState.from_keras(model)
        >>> state, history = train(state, make_train_step(model), batches, epochs=3, verbose=0)
        >>> int(state.step), len(history.history["loss"])
        (15, 3)
    """
    given, feed = state, Feed(data)
    _require_end(feed, steps, epochs, manager)
    if manager is not None and manager.latest_step is not None:
        state = manager.restore(state, data=feed)
    watch = _Watch(state, callbacks, verbose, feed, epochs)
    run = _Run(watch.begin(state), train_step, feed, manager)
    with Preemption() as preemption, run.kept_in(given):

        def over() -> bool:
            return preemption.came(run.count) or watch.stopped or _reached(run.count, steps)

        while not over() and not _reached(feed.epoch, epochs):
            epoch, logs = feed.epoch, run.epoch(watch, over)
            if logs:
                logs = {**logs, **_evaluated(run.state, eval_step, eval_data)}
                run.state = watch.epoch_end(epoch, run.state, logs)
                run.save(logs, due=feed.epoch > epoch)
        run.state = watch.end(run.state)
        run.finish()
    if preemption.came(run.count):
        sys.exit(0)
    return run.state, watch.history


class _Run:
    """The state during the loop; counts steps without waiting for the device."""

    def __init__(
        self, state: TrainState, train_step: Step[TrainState], feed: Feed, manager: CheckpointManager | None
    ):
        self.state = state
        self.count = int(state.step)
        self._stride = 0  # steps of a call: known after the first
        self._train_step = train_step
        self._feed = feed
        self._manager = manager

    def epoch(self, watch: _Watch, over: Callable[[], bool]) -> dict[str, Any]:
        """Trains on the rest of the epoch, or until the end; returns the last logs, if any."""
        feed, logs = self._feed, {}
        if feed.batch == 0:
            self.state = self.state.reset_metrics()
        self.state = watch.epoch_begin(feed.epoch, self.state)
        for batch in feed:
            logs = self._step(batch)
            watch.batch_end(feed.batch - 1, logs)
            if feed.batch == feed.length:  # the end is known before the data is exhausted
                break
            self.save(logs, due=True)
            if over():
                return logs
        if feed.batch == 0:
            raise StructureMismatchError(
                "data",
                got="no batches",
                expected="one or more in each epoch",
                fix="If the iterator is exhausted, pass a new one, or an iterable that can be read again.",
            )
        feed.next_epoch()
        return logs

    @contextlib.contextmanager
    def kept_in(self, given: TrainState) -> Iterator[None]:
        """If training is interrupted, updates the caller's state to the last one reached, and saves it."""
        try:
            yield
        except KeyboardInterrupt as interruption:
            lazy_trees.overwrite(given, self.state)
            self.count = int(self.state.step)
            try:
                self.finish()
            except BridgeError as failure:
                interruption.add_note(f"The last checkpoint may be missing: {failure}")
            raise

    def _step(self, batch: Any) -> dict[str, Any]:
        self.state, logs = self._train_step(self.state, batch)
        self._stride = self._stride or int(self.state.step) - self.count
        self.count += self._stride
        return dict(logs)

    def save(self, logs: Logs, *, due: bool) -> None:
        """Saves at multiples of the manager's ``save_every``; no step twice."""
        manager = self._manager
        if manager is None or not due or self.count in manager.saved:
            return
        if self.count // manager.save_every > (self.count - self._stride) // manager.save_every:
            manager.save(self.state, data=self._feed, logs=logs, now=True)

    def finish(self) -> None:
        """Returns when the last step is on disk."""
        if self._manager is not None:
            try:
                if self.count not in self._manager.saved:
                    self._manager.save(self.state, data=self._feed, now=True)
            finally:  # where it raises what an earlier save met, its own was started
                self._manager.wait()


def _reached(count: int, goal: int | None) -> bool:
    return goal is not None and count >= goal


def _require_end(feed: Feed, steps: int | None, epochs: int | None, manager: Any) -> None:
    if steps is None and (epochs is None or feed.endless):
        raise StructureMismatchError(
            "train",
            got="neither steps nor epochs" if epochs is None else "epochs of an iterator",
            expected="steps=" if feed.endless else "steps= or epochs=",
            fix="An iterator has no epochs: pass steps=, or an iterable that can be read again.",
        )
    if manager is not None and not feed.restorable:
        raise StructureMismatchError(
            "data",
            got="an iterator without a position",
            expected="one with get_state and set_state, for the manager to resume",
            fix="Pass a list, a Grain dataset or iterator, or train without manager=.",
        )


def _evaluated(
    state: TrainState, eval_step: Step[TrainState] | None, eval_data: Iterable[Batch] | None
) -> dict[str, Any]:
    """The logs of an evaluation; the state that it leaves is of no use."""
    if eval_step is None or eval_data is None:
        return {}
    state = state.reset_metrics()
    logs: Logs = {}
    for batch in eval_data:
        state, logs = eval_step(state, batch)
    return {f"val_{name}": value for name, value in logs.items()}


class _Watch:
    """Runs Keras callbacks around the loop, and applies their changes of the model to the state."""

    def __init__(self, state: TrainState, callbacks: Any, verbose: int, feed: Feed, epochs: int | None):
        self._users = list(callbacks)
        models = models_of(state.apply_fn)
        self._model: Any = models.get("")
        if self._users and self._model is None:
            raise StructureMismatchError(
                "callbacks",
                got=f"callbacks, and a state of {len(models)} models",
                expected="a state of one Keras model",
                fix="Train without callbacks, or write the loop yourself.",
            )
        self.history = History()
        self._list = keras.callbacks.CallbackList(
            [*self._users, self.history],
            add_progbar=verbose != 0,
            model=self._model or keras.Model(),  # History wants one to be remembered by
            verbose=verbose,
            epochs=epochs or 1,
            steps=feed.length,
        )

    @property
    def stopped(self) -> bool:
        return bool(self._users) and self._model.stop_training

    def begin(self, state: TrainState) -> TrainState:
        if self._users:
            self._model.stop_training = False
            state.assign_to(self._model)
        self._list.on_train_begin()
        return self._with_rates(state)

    def epoch_begin(self, epoch: int, state: TrainState) -> TrainState:
        self._list.on_epoch_begin(epoch)
        return self._with_rates(state)

    def batch_end(self, batch: int, logs: Logs) -> None:
        self._list.on_train_batch_end(batch, dict(logs))

    def epoch_end(self, epoch: int, state: TrainState, logs: Logs) -> TrainState:
        if self._users:
            state.assign_to(self._model)
        self._list.on_epoch_end(epoch, {name: _number(value) for name, value in logs.items()})
        return self._with_rates(state)

    def end(self, state: TrainState) -> TrainState:
        self._list.on_train_end()
        if not self._users:
            return state
        weights = zip(WEIGHTS, keras_internals.collect_layer(self._model), strict=True)
        return state.replace(**{n: c.tree([owned(e.variable.value) for e in c]) for n, c in weights})

    def _with_rates(self, state: TrainState) -> TrainState:
        """Learning rates that a callback set on the model's optimizer."""
        if not self._users:
            return state
        entries = keras_internals.collect(self._model, metrics=False).opt_state
        rates = {e.path: owned(e.variable.value) for e in entries if e.path[-1] == "learning_rate"}
        return state.replace(opt_state=fill_tree(state.opt_state, rates)) if rates else state


def _number(value: Any) -> Any:
    """A log for callbacks: a float if it is a scalar."""
    return float(value) if getattr(value, "ndim", 0) == 0 else value
