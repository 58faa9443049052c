"""The loop of a run: epochs of steps, between the hooks of callbacks."""

from __future__ import annotations

import sys
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.callback_memory import Memory, put_back
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training import averages
from keras_flax_bridge.training.data import Feed
from keras_flax_bridge.training.evaluating import Evaluation
from keras_flax_bridge.training.keeping import Keeper
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.training.watching import EVALUATION, TRAINING, Watch
from keras_flax_bridge.tree.types import Step


class Goal:
    """How far a run has come, and when it is over.

    Args:
        feed: the data.
        steps: the last step, if it is given.
        epochs: how many epochs, if it is given.
        count: the step at which the run begins.

    Attributes:
        count: of steps.
    """

    def __init__(self, feed: Feed, steps: int | None, epochs: int | None, count: int):
        self.feed, self.count = feed, count
        self._steps, self._epochs = steps, epochs

    @property
    def is_at_last_step(self) -> bool:
        """Whether the last step was made."""
        return self._steps is not None and self.count >= self._steps

    @property
    def is_reached(self) -> bool:
        """Whether nothing is left to train."""
        return self.is_at_last_step or (self._epochs is not None and self.feed.epoch >= self._epochs)

    @property
    def is_over(self) -> bool:
        """Whether the run that is resumed came to its end, so that its result is on disk."""
        return self.feed.finished and (self.feed.ended_by is not None or self.is_reached)


class Run:
    """The state during the loop; counts steps without waiting for the device.

    Args:
        state: the state at the beginning.
        train_step: the step.
        goal: when to end.
        watch: the callbacks.
        evaluation: between epochs.
        keeper: writes checkpoints.
    """

    def __init__(
        self,
        state: TrainState,
        train_step: Step[TrainState],
        goal: Goal,
        watch: Watch,
        evaluation: Evaluation,
        keeper: Keeper,
    ):
        self.state = state
        self._feed, self._goal = goal.feed, goal
        self._stride: int = getattr(train_step, "steps_per_call", 0)  # of a step of one's own: by the first
        self._train_step, self._evaluation = train_step, evaluation
        self._watch, self._keeper = watch, keeper
        self._preemption = Preemption()
        self._is_due = False

    @property
    def is_preempted(self) -> bool:
        """Whether a SIGTERM came."""
        return self._preemption.came(self._goal.count)

    @property
    def _is_ending(self) -> bool:
        """Whether the run ends after this step, for another reason than a SIGTERM."""
        return self._goal.is_at_last_step or self._watch.is_stopped

    @property
    def _is_at_end(self) -> bool:
        return self._goal.is_reached or self._watch.is_stopped or self._feed.ended_by is not None

    # --- from begin to end

    def recall(self, memory: Memory) -> None:
        """Gives the result of a run that is over to the model and the callbacks, without their hooks."""
        for record in (one for one in self._watch.all if isinstance(one, keras.callbacks.History)):
            record.on_train_begin()  # it makes its list of epochs there
        put_back(self._watch.all, memory, "the run's checkpoint", files=False)
        self._watch.begin(self.state)
        self._watch.leave(self.state)

    def train(self, memory: Memory | None, *, afresh: bool) -> None:
        """Trains on all epochs that are left, and saves the result.

        Args:
            memory: what callbacks remember of the run that is resumed; None for a new one.
            afresh: whether they forget that they ended it.
        """
        watch, feed, logs = self._watch, self._feed, dict[str, Any]()
        with self._preemption:
            watch.begin(self.state)
            watch.hooks.on_train_begin()
            self._keeper.begin(memory, afresh=afresh)
            self._take(keep=memory is not None)
            feed.finished = False
            while not (self._is_at_end or self.is_preempted):
                logs = self._epoch(resumed=memory is not None and feed.batch > 0)
                memory = None
            if not self._is_at_end:
                sys.exit(0)
            self._end(logs)

    def _take(self, *, keep: bool) -> None:
        """Takes what callbacks assigned in a hook; with `keep`, a resumed state has it already."""
        changed = self._watch.current(self.state)
        self.state = self.state if keep else changed
        self._watch.show(self.state)

    def _end(self, logs: dict[str, Any]) -> None:
        watch = self._watch
        with self._keeper.whole(self.state):
            self.state = averages.final(self.state)
            watch.show(self.state)
            watch.hooks.on_train_end(logs)
            self._take(keep=False)
        self._feed.finished = self._goal.is_reached or self._feed.ended_by is not None
        watch.leave(self.state)
        self._keeper.finish(self.state, logs)

    # --- an epoch

    def _epoch(self, *, resumed: bool) -> dict[str, Any]:
        """Trains on the rest of an epoch, evaluates, and returns the epoch's logs."""
        feed, watch = self._feed, self._watch
        self._begin_epoch(resumed=resumed)
        is_whole = self._batches()
        if feed.batch == 0:
            raise StructureMismatchError(
                "data",
                got="no batches",
                expected="one or more in each epoch",
                fix="If the iterator is exhausted, pass a new one, or an iterable that can be read again.",
            )
        if self.is_preempted and not self._is_ending:
            sys.exit(0)
        watch.sync()  # as fit does, before it ends an epoch
        last = self.state
        self._take(keep=False)
        if self.state is not last:
            feed.logs = watch.logs(feed.logs, last, self.state)
        with self._keeper.whole(self.state):
            logs = self._end_epoch()
        feed.ended_by = watch.ended_by(logs)
        if is_whole:
            feed.next_epoch()
        if self._is_due and not self._is_at_end:
            self._keeper.save(self.state, logs)
        return logs

    def _begin_epoch(self, *, resumed: bool) -> None:
        if self._feed.batch == 0:
            self.state = self.state.reset_metrics()
            self._watch.show(self.state)
        self._watch.hooks.on_epoch_begin(self._feed.epoch)
        if resumed:
            self._keeper.remind()
        self._take(keep=resumed)

    def _end_epoch(self) -> dict[str, Any]:
        watch = self._watch
        logs = keras_internals.as_numbers(self._feed.logs)
        self.state, found = self._evaluation(self.state, watch)
        logs |= found
        watch.show(self.state, EVALUATION if found else TRAINING)
        watch.hooks.on_epoch_end(self._feed.epoch, logs)
        self._take(keep=False)
        return logs

    def _batches(self) -> bool:
        """Trains on the rest of the epoch; whether it came to its end."""
        feed, watch, keeper, goal = self._feed, self._watch, self._keeper, self._goal
        hooks = watch.hooks
        for batch in feed:
            if keeper.is_pending:
                self.state = watch.current(self.state)
                keeper.save_noted(self.state)
            hooks.on_train_batch_begin(feed.batch)
            self.state = watch.current(self.state)
            self.state, logs = self._train_step(self.state, batch)
            self._count(logs)
            watch.show(self.state)
            hooks.on_train_batch_end(feed.batch - 1, logs)
            if self._is_ending or self.is_preempted:
                return feed.batch == feed.length
            self._is_due = (
                keeper.is_due(goal.count - self._stride, goal.count) or self._preemption.save_asked()
            )
            if self._is_due:
                keeper.note(logs)
        return True

    def _count(self, logs: Any) -> None:
        goal = self._goal
        self._stride = self._stride or int(self.state.step) - goal.count
        goal.count += self._stride
        self._feed.logs = logs
        self._feed.done()

    def reconcile(self) -> None:
        """Counts a step that was made when an interrupt came before it was counted."""
        if self._stride and int(self.state.step) - self._goal.count == self._stride:
            self._count(self._feed.logs)
