"""Saving a run: when a checkpoint is due, at its end, and when an exception ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.callback_memory import NO_MEMORY, Memory, put_back, remembered
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.state import lazy_trees
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.data import Feed
from keras_flax_bridge.training.rescuing import may_save, newest, noting
from keras_flax_bridge.training.watching import Watch


class _Place:
    """A position in the form of an iterator."""

    def __init__(self, position: dict[str, Any]):
        self._position = position

    def get_state(self) -> dict[str, Any]:
        return self._position

    def set_state(self, state: Any) -> None:
        raise NotImplementedError  # a position is only written


class Run(Protocol):
    """What is kept: see `running.Run`."""

    state: TrainState

    @property
    def is_preempted(self) -> bool: ...  # noqa: D102

    def reconcile(self) -> None: ...  # noqa: D102


class Keeper:
    """Writes the checkpoints of a run.

    A checkpoint within an epoch is written when the next batch is there: the last batch of an epoch is saved
    when its end is over, with the logs of the evaluation.

    Args:
        manager: where checkpoints are written; None to write none.
        feed: the data, whose position is stored.
        watch: the callbacks, whose memory is stored.
        evaluates: whether the logs at the end of an epoch have more than those within it.
    """

    def __init__(self, manager: CheckpointManager | None, feed: Feed, watch: Watch, *, evaluates: bool):
        self._manager, self._feed, self._watch = manager, feed, watch
        self._evaluates = evaluates
        self._before, self._afresh = NO_MEMORY, False
        self._restored: Memory | None = None
        self._pending: tuple[dict[str, Any], Mapping[str, Any]] | None = None
        self._safe: tuple[TrainState, Memory] | None = None

    def begin(self, restored: Memory | None, *, afresh: bool = False) -> None:
        """Takes note of what callbacks remember when training begins.

        Args:
            restored: what they are to remember instead; None for nothing else.
            afresh: whether they forget that they ended the run.
        """
        self._before = remembered(self._watch.all) if self._manager is not None else NO_MEMORY
        self._restored, self._afresh = restored, afresh
        self.remind()

    def remind(self) -> None:
        """Lets callbacks remember what was restored, whatever a hook did since."""
        if self._restored is not None and self._manager is not None:
            put_back(self._watch.all, self._restored, str(self._manager.directory))
        for callback in self._watch.all if self._afresh else ():
            if isinstance(callback, keras.callbacks.EarlyStopping):
                callback.wait = callback.stopped_epoch = 0

    def is_due(self, before: int, count: int) -> bool:
        """Whether a checkpoint is due when the count of steps goes from one number to another."""
        return self._manager is not None and self._manager.is_due(before, count)

    @property
    def is_pending(self) -> bool:
        """Whether there is something to save when the next batch is there."""
        return self._pending is not None

    def note(self, logs: Mapping[str, Any]) -> None:
        """Remembers to save at this position when the next batch is there."""
        if self._manager is not None:
            self._pending = self._feed.get_state(), keras_internals.as_numbers(logs)

    def save_noted(self, state: TrainState) -> None:
        """Saves what was noted."""
        if self._pending is not None:
            (position, logs), self._pending = self._pending, None
            self._save(state, position, logs, self._memory(), evaluated=not self._evaluates)

    def save(self, state: TrainState, logs: Mapping[str, Any], *, again: bool = False) -> None:
        """Saves now, with all logs of an epoch; `again` even where the step is there."""
        if self._manager is not None:
            self._save(state, self._feed.get_state(), logs, self._memory(), evaluated=True, again=again)

    def finish(self, state: TrainState, logs: Mapping[str, Any]) -> None:
        """Saves the result, and returns when all is on disk.

        Its step is there already where the run was resumed at the end of its last epoch: what is stored then
        is not the result, and the result takes its place.
        """
        if self._manager is not None:
            try:
                self.save(state, logs, again=True)
            finally:  # where it raises what an earlier save met, its own was started
                self._manager.wait()

    def _memory(self) -> Memory:
        return remembered(self._watch.all, self._before) if self._manager is not None else NO_MEMORY

    def _save(
        self,
        state: TrainState,
        position: Any,
        logs: Mapping[str, Any],
        memory: Memory,
        *,
        evaluated: bool = False,
        again: bool = False,
    ) -> None:
        assert self._manager is not None
        if again or int(state.step) not in self._manager.saved:
            given: dict[str, Any] = {"data": _Place(position), "logs": logs, "callbacks": memory}
            self._manager.save(state, **given, evaluated=evaluated, now=True, again=again)

    # --- exceptions

    @contextlib.contextmanager
    def whole(self, state: TrainState) -> Iterator[None]:
        """While it holds, an exception leaves this state: what happens after it is done again on resume.

        At the end of an epoch, callbacks and the evaluation would otherwise be met in the middle.
        """
        self._pending = None
        self._safe = state, self._memory()
        yield
        self._safe = None

    @contextlib.contextmanager
    def rescuing(self, given: TrainState, run: Run) -> Iterator[None]:
        """Keeps what was reached when an exception ends training: in the state given, the model and on disk.

        A note of the exception says what is lost.
        """
        try:
            yield
        except BaseException as error:
            state, memory = self._safe or (self._watch.current(run.state), self._memory())
            if _is_consumed(state):
                error.add_note(f"The step had taken over the buffers of the state. {newest(self._manager)}")
            else:
                if self._safe is None:
                    run.reconcile()
                lazy_trees.overwrite(given, state)
                self._rescue(given, memory, error, agreed=isinstance(error, SystemExit) and run.is_preempted)
            raise

    def _rescue(self, state: TrainState, memory: Memory, error: BaseException, *, agreed: bool) -> None:
        """Gives the model a copy of the state, and writes it.

        Args:
            state: the last whole one.
            memory: what callbacks remembered then.
            error: gets the note.
            agreed: whether all processes end after the same step, so that they can save together.
        """
        with noting(self._manager, error):
            self._watch.leave(state)
            if self._manager is not None and may_save(self._manager, error, agreed=agreed):
                self._save(state, self._feed.get_state(), keras_internals.as_numbers(self._feed.logs), memory)


def _is_consumed(state: TrainState) -> bool:
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state))
