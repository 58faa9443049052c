"""Evaluation between epochs, as `fit` validates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import ArgumentError, StructureMismatchError
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.watching import EVALUATION, Watch
from keras_flax_bridge.tree.types import Batch, Logs, Step

_PREFIX = "val_"


class Evaluation:
    """An eval step and its data; without both, nothing is evaluated.

    Attributes:
        comes: whether something is evaluated.

    Raises:
        ArgumentError: if one of them is missing.
    """

    def __init__(self, step: Step[TrainState] | None, data: Iterable[Batch] | None):
        if (step is None) != (data is None):
            got, lacking = ("eval_data", "eval_step") if step is None else ("eval_step", "eval_data")
            raise ArgumentError(
                lacking,
                got=f"{got}= without {lacking}=",
                expected="eval_step= and eval_data=, or neither",
                fix="Pass eval_step=kfb.make_eval_step(model) and eval_data= a list of batches.",
            )
        self._step, self._data = step, data
        self.comes = step is not None

    def __call__(self, state: TrainState, watch: Watch) -> tuple[TrainState, dict[str, Any]]:
        """The state that an evaluation hands on, and its logs, named as validation names them.

        What the eval step wrote to `non_trainable`, such as seeds, is handed on; the metrics of training are
        as before.

        Raises:
            StructureMismatchError: if there are no batches.
        """
        if self._step is None or self._data is None:
            return state, {}
        hooks = watch.hooks
        watch.begin_evaluation()
        hooks.on_test_begin()
        trained = watch.current(state)
        state, logs = self._all_batches(self._step, self._data, trained.reset_metrics(), watch)
        found = keras_internals.as_numbers(logs)
        hooks.on_test_end(found)
        state = watch.current(state).replace(metrics=trained.metrics)
        return state, {_PREFIX + name: value for name, value in found.items()}

    def _all_batches(
        self, step: Step[TrainState], data: Iterable[Batch], state: TrainState, watch: Watch
    ) -> tuple[TrainState, Logs]:
        hooks, logs = watch.hooks, None
        watch.show(state, EVALUATION)
        for number, batch in enumerate(data):
            hooks.on_test_batch_begin(number)
            state, logs = step(watch.current(state), batch)
            watch.show(state, EVALUATION)
            hooks.on_test_batch_end(number, logs)
            if watch.is_evaluation_stopped:
                break
        if logs is None:
            raise StructureMismatchError(
                "eval_data",
                got="no batches",
                expected="one or more in each epoch",
                fix="An iterator is exhausted after one epoch: pass a list, or an iterable that can be read "
                "again.",
            )
        watch.sync()  # as fit does, before the hook that ends the evaluation
        return state, logs
