"""Callbacks around the loop: what they read on the model is current, and what they assign takes effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import ArgumentError, StructureMismatchError
from keras_flax_bridge.keras_internals import LiveState
from keras_flax_bridge.optimizers.step_interface import KerasTransformation
from keras_flax_bridge.state import assignments
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.training.endings import ended_by
from keras_flax_bridge.training.history import History
from keras_flax_bridge.training.hooks import Hooks, names_of, of_this_process
from keras_flax_bridge.tree.paths import fill_tree
from keras_flax_bridge.tree.types import Logs

TRAINING, EVALUATION = "metrics", "eval_metrics"  # the trees whose values the model's metrics show

_REFUSED = {  # each needs `fit`
    "BackupAndRestore": "Pass manager=kfb.CheckpointManager(folder): it saves and resumes.",
    "TrainStateCheckpoint": "Pass manager=kfb.CheckpointManager(folder): it saves and resumes.",
}


class Watch:
    """The callbacks of a run, Keras's record of it and its progress bar.

    Args:
        state: the state that is trained.
        callbacks: those of the user.
        verbose: as in `fit`.
        epochs: how many epochs are trained, if that is known.
        steps: how many batches an epoch has, if that is known.

    Attributes:
        hooks: to be called between `current` and `show`.
        all: the callbacks whose memory is kept.

    Raises:
        ArgumentError: if a callback needs `fit`.
        StructureMismatchError: if there are callbacks, and the state is not of one Keras model.
    """

    def __init__(
        self,
        state: TrainState,
        callbacks: Iterable[Any],
        *,
        verbose: int,
        epochs: int | None,
        steps: int | None,
    ):
        users = _usable(list(keras.tree.flatten(list(callbacks))))
        models = models_of(state.apply_fn)
        self._model: Any = models.get("") if users else None
        if users and self._model is None:
            raise StructureMismatchError(
                "callbacks",
                got=f"callbacks, and a state of {len(models)} models",
                expected="a state of one Keras model",
                fix="Train without callbacks, or write the loop yourself.",
            )
        self.history = History()
        self.hooks = Hooks(
            [*users, self.history],
            add_progbar=verbose != 0 and jax.process_index() == 0,
            model=self._model or keras.Model(),  # History wants one to be remembered by
            verbose=verbose,
            epochs=epochs or 1,
            steps=steps,
        )
        self.all = [*users, self.history]
        self._live: LiveState | None = None
        self._metrics = TRAINING

    def begin(self, state: TrainState) -> None:
        """Shows the state to the callbacks from now on; their model is the state's.

        Raises:
            NotBuiltError, OwnershipError, StructureMismatchError: if the state can't be assigned to it.
        """
        if self._model is None:
            return
        assignments.of(state, self._model)  # checks every leaf
        places = receivers(self._model)
        if not isinstance(state.tx, KerasTransformation):
            places.pop("opt_state", None)
        self._model.stop_training = False
        self._live = LiveState(self._model, places, self._trees)
        self._live.show(state)

    def show(self, state: TrainState, metrics: str = TRAINING) -> None:
        """What the model shows from now on, and the tree that the values of its metrics are in."""
        if self._live is not None:
            self._metrics = metrics
            self._show_metrics(self._live)
            self._live.show(state)

    def current(self, state: TrainState) -> TrainState:
        """The state that was shown, with what callbacks changed on the model since.

        It can be donated to a step: the model shares no buffer with it.
        """
        if self._live is None or not self._live.is_asked:
            return state
        changed = {self._field(tree): flat for tree, flat in self._live.take().items()}
        if not changed:
            return state
        new: TrainState = state.replace(**{n: fill_tree(getattr(state, n), f) for n, f in changed.items()})
        self._live.show(new)
        return new

    def sync(self) -> None:
        """Writes what is shown into the variables, for code that has the model from elsewhere."""
        if self._live is not None:
            self._live.sync()

    def leave(self, state: TrainState) -> None:
        """Gives the model a copy of the state, and lets go of it.

        Raises:
            NotBuiltError, OwnershipError, StructureMismatchError: if the state can't be assigned to it.
        """
        if self._live is not None:
            self._live.end()
            self._live = None
            state.assign_to(self._model)

    @property
    def is_stopped(self) -> bool:
        """Whether a callback ended training."""
        return self._live is not None and self._model.stop_training

    def logs(self, logs: Logs, before: TrainState, after: TrainState) -> Logs:
        """The logs of an epoch: those of the last step, unless a callback changed the metrics since."""
        if before.metrics is after.metrics:
            return logs
        found = keras_internals.metric_results(self._model, after.metrics)
        return found if found.keys() == keras_internals.as_numbers(logs).keys() else logs

    def ended_by(self, logs: Mapping[str, Any]) -> str | None:
        """The class of the callback that ended training for good; None if none did, or one only paused it."""
        return ended_by(self.is_stopped, self.all, logs)

    @property
    def is_evaluation_stopped(self) -> bool:
        """Whether a callback ended the evaluation that is going on."""
        return self._live is not None and self._model.stop_evaluating

    def begin_evaluation(self) -> None:
        """Forgets that a callback ended an earlier evaluation."""
        if self._live is not None:
            self._model.stop_evaluating = False

    def _show_metrics(self, live: LiveState) -> None:
        """Shows the values of metrics as well, once the first batch has built them."""
        if not live.has(TRAINING) and keras_internals.metrics_built(self._model):
            live.add(TRAINING, receivers(self._model)[TRAINING])

    def _trees(self, state: TrainState) -> Mapping[str, Any]:
        names = ("params", "non_trainable", "opt_state", "metrics", "compiled")
        return {name: getattr(state, self._field(name)) for name in names}

    def _field(self, tree: str) -> str:
        return self._metrics if tree == TRAINING else tree


def _usable(callbacks: list[Any]) -> list[Any]:
    """The callbacks that run in this process.

    Raises:
        ArgumentError: if one needs `fit`.
    """
    for callback in callbacks:
        for name in names_of(callback) & _REFUSED.keys():
            raise ArgumentError(
                "callbacks",
                got=f"a {type(callback).__name__}, which needs fit",
                expected="callbacks that work with any loop",
                fix=_REFUSED[name],
            )
    return of_this_process(callbacks)
