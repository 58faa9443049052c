"""A `fit` with checkpoints: what it finds in the folder, what it leaves there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import callback_memory, orbax_io
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.errors import printable
from keras_flax_bridge.keras_internals import fitting, loaders
from keras_flax_bridge.training import phases, positions, resuming
from keras_flax_bridge.training.fit_hooks import FitHooks, fitted
from keras_flax_bridge.training.fit_on_mesh import Placement
from keras_flax_bridge.training.loaders import require_same
from keras_flax_bridge.training.preemption import Preemption
from keras_flax_bridge.training.recording import Recorder
from keras_flax_bridge.training.rescuing import may_save, noting

log = logging.getLogger("keras_flax_bridge")


class _OverError(Exception):
    """Ends Keras's `fit` before it begins: nothing is left to train."""


def recorded(given: Mapping[str, Any], run: RecordedFit, where: Placement | None) -> keras.callbacks.History:
    """A `fit` that saves and resumes."""
    try:
        history = fitted(run.model, given, run.hooks, where)
    except _OverError:
        history = run.result()
    except BaseException as error:
        run.failed(error)
        raise
    finally:
        run.end()
    phases.ended(run.manager.directory)
    return history


class RecordedFit:
    """A `fit` that saves, and resumes.

    Args:
        model: the model.
        hooks: its callbacks.
        manager: where checkpoints go.
        resume: the argument of `fit`.
        each_epoch: whether a save is due at the end of each epoch, otherwise by the manager's own rule.
    """

    def __init__(
        self, model: Any, hooks: FitHooks, manager: CheckpointManager, resume: Any, *, each_epoch: bool
    ):
        self.hooks, self.manager = hooks, manager
        self.model, self._resume, self._each_epoch = model, resume, each_epoch
        manager.wait()
        self._phase = phases.present(manager.directory, hooks.epochs, resume)
        manager.keep(self._phase.ends)
        self._recorder: Recorder | None = None
        self._preemption = Preemption()
        self._unwatch: Callable[[], None] = lambda: None
        hooks.at_start, hooks.at_begin = self._starts, self._begins

    def _starts(self, iterator: Any) -> None:
        """Whether there is something to train, and whether the data is that of the run."""
        phase, where = self._phase, self.manager.directory
        if phase.is_over(self.hooks.epochs, self._resume):
            raise _OverError
        loader = loaders.loader(iterator)
        if phase.position is not None and self._resume != "restart_epoch":
            require_same(loader, phase.position.run.data, where)
        if loader.doubt:
            log.warning(
                "%s",
                printable(f"{where}: a resumed run may see other batches. {loader.kind}: {loader.doubt}"),
            )

    def _begins(self) -> None:
        """After callbacks heard of the beginning: restores, and begins to record."""
        step, position = self._phase.step, self._phase.position
        if step is not None:
            self.manager.restore(self.model, step=step)
        self._recorder = Recorder(
            self.model,
            self.manager,
            fitting.Call.of(self.model),
            due=self._is_due,
            each_epoch=self._each_epoch,
            preemption=self._preemption,
            phase=self._phase.number,
        )
        if step is not None and position is not None:
            again = self._resume == "restart_epoch"
            self._recorder.resume(position, step, again=again)
            batch = 0 if again else position.progress.batch
            self.hooks.say(resuming.went_on(self.manager, step, position.progress.epoch, batch))
        self._recorder.attach()
        self._unwatch = fitting.watch(self.model, self._recorder)
        self._preemption.begin()

    def _is_due(self, before: int, step: int) -> bool:
        return not self._each_epoch and self.manager.is_due(before, step)

    def failed(self, error: BaseException) -> None:
        """Saves the last whole step, or says which one is the newest on disk."""
        if self._recorder is None:
            return
        with noting(self.manager, error):
            if may_save(self.manager, error):
                self._recorder.failed()

    def result(self) -> keras.callbacks.History:
        """The result of a phase that came to its end, in the model and in the callbacks."""
        step, position = self._phase.step, self._phase.position
        assert step is not None
        assert position is not None
        self.manager.restore(self.model, step=step)
        if position.now is not None:
            positions.set_generators(position.now)  # the next phase draws from there
        hooks = self.hooks
        hooks.attach_now()
        for record in (one for one in hooks.callbacks if isinstance(one, keras.callbacks.History)):
            record.on_train_begin()  # it makes its list of epochs there
        memory = orbax_io.memory(self.manager.directory / str(step))
        callback_memory.put_back(hooks.callbacks, memory, f"{self.manager.directory}/{step}", files=False)
        hooks.say(resuming.was_over(self.manager, step, position.run.ended_by))
        history: keras.callbacks.History = self.model.history
        return history

    def end(self) -> None:
        """Lets go of the model and of the signals."""
        self._unwatch()
        self._preemption.end()
        keras_internals.begin_fit_at(self.model, None)
        self.manager.wait()
