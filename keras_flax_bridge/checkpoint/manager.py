"""The manager of a folder of checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import keras

from keras_flax_bridge.checkpoint import data_positions, orbax_io
from keras_flax_bridge.checkpoint.callback_memory import Memory, remembered
from keras_flax_bridge.checkpoint.checks import (
    KeepBest,
    best_rules,
    is_count,
    is_packed,
    is_unranked,
    require,
    stale,
    unranked,
)
from keras_flax_bridge.checkpoint.intervals import Interval
from keras_flax_bridge.checkpoint.locating import candidates, from_newest
from keras_flax_bridge.checkpoint.options import Include, Rename, RestoreOptions
from keras_flax_bridge.checkpoint.restoring import restored
from keras_flax_bridge.checkpoint.saving import checked, note, numbers, state_metadata, step_of
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.state import gc_pause
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Models, PathLike, PyTree, Target

log = logging.getLogger("keras_flax_bridge")


@words.doors()
class CheckpointManager(metaclass=words.AnsweringType):
    """A folder of checkpoints, numbered by the state's own step.

    Saves run in the background. If one fails, the next call of `save`, `wait`, `restore` or `close` raises
    its error, once. `save` starts its own save first, so the state it was given is not lost. At the end of a
    ``with`` block that another exception ends, the error becomes a note of that exception.

    All methods may be called from several threads. In one thread, steps must grow; threads that save side by
    side may save in any order. A manager that was never closed finishes its save when the interpreter ends.

    Args:
        directory: the root folder; made if it doesn't exist. Relative paths are fine.
        max_to_keep: how many of the newest steps stay; None for all.
        keep_best: a name in the logs, or ``(name, "min")`` or ``(name, "max")``: the best step by
            that value stays as well. Without a mode, losses and errors count as better when they
            are smaller, accuracies and other scores when they are larger. A list of such rules keeps
            the best step by each.
        keep_every: steps that are multiples of this number stay as well; None for none.
        save_every: `save` writes only when a multiple of this many steps was reached; or a time, such as
            ``"90s"``, ``"10min"`` or ``"2h"``: only when so long has passed since the last save. With several
            processes, whose clocks differ, a number of steps.
        layout: how leaves are stored: ``"tree"``, one Orbax array each, which plain Orbax code reads
            by name; ``"packed"``, all leaves under 64 KiB in one array, many times faster where there
            are many of them. `restore` reads both.

    Raises:
        CheckpointError: if the folder can't be used, or an argument is not one of the above.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> state = TrainState.from_keras(model)
        >>> with CheckpointManager(tempfile.mkdtemp(), max_to_keep=2) as manager:
        ...     manager.save(state)
        ...     manager.wait()
        ...     manager.latest_step
        True
        0
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        max_to_keep: int | None = 3,
        keep_best: KeepBest = None,
        keep_every: int | None = None,
        save_every: int | str = 1,
        layout: str = "tree",
    ):
        self._rule = Interval(save_every)
        for name, kept in {"max_to_keep": max_to_keep, "keep_every": keep_every}.items():
            allowed = kept is None or is_count(kept)
            fix = f"{name}=None sets no limit." if name == "max_to_keep" else f"Leave {name}= out."
            require(allowed, name, repr(kept), "None, or a whole number of steps, 1 or more", fix)
        self.directory = orbax_io.absolute(directory)
        self._best = best_rules(keep_best)
        self._unranked = [name for name, _ in self._best]  # those that no logs had yet
        self.save_every = save_every
        self._root = orbax_io.Root(
            self.directory, (max_to_keep, keep_every, self._best), packed=is_packed(layout)
        )
        self._last_seen: int | None = None
        self._lock = threading.Lock()  # for what `save` remembers

    @property
    def saved(self) -> set[int]:
        """The steps that this manager wrote or restored; a step whose save failed is not among them."""
        return set(self._root.owners)

    def save(
        self,
        state: PyTree,
        *,
        data: Any = None,
        logs: Mapping[str, Any] | None = None,
        model: Models | None = None,
        metadata: Mapping[str, Any] | None = None,
        step: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] | Memory = (),
        evaluated: bool = False,
        now: bool = False,
        again: bool = False,
    ) -> bool:
        """Saves a state in the background, if a save is due.

        Args:
            state: a `TrainState`, this package's or Flax's, an NNX optimizer, or a dict or tuple with one of
                these or with a step: its `step` numbers the checkpoint.
            data: a Grain iterator, or any with `get_state` (bytes or JSON types) and `set_state`;
                its position at this moment is stored.
            logs: scalars to store, other values are omitted; `keep_best` ranks by one of them.
            model: the Keras model whose config and assets are stored for `load_model`; None for
                the one that the state was taken from.
            metadata: a dict of JSON types that is stored beside the state; `metadata(step)` gives it back.
            step: the number, for what has no step, such as an `nnx.Module`.
            callbacks: Keras callbacks whose memory is stored, such as the best value of EarlyStopping.
                `fit` and `train` give it back when they resume.
            evaluated: True if `logs` are complete, with those of an evaluation if there is one: a
                `keep_best` that begins with ``val_`` must be among them. So it must if another such name is.
            now: True saves regardless of `save_every`.
            again: True writes this step anew if it is already there because this manager wrote or restored
                it, such as one that was saved before the end of its epoch. A process that is killed
                meanwhile leaves the step before it as the newest; where there is none, the step stays as
                it is.

        Returns:
            True if a save was started; False if none is due, or, without `again`, this step is already
            there because this manager wrote or restored it.

        Raises:
            ArgumentError: if `logs` lack the name of `keep_best`, and no earlier ones had it; nothing was
                written.
            CheckpointError: if the folder holds this step or newer ones of another run. Or if an earlier
                save failed: then the message says whether the save of this state was started.
            OwnershipError: if a leaf was donated.
            StructureMismatchError: if a leaf is of a kind that can't be restored; lists all of them, and
                nothing was written.
        """
        step, noted = step_of(state, step), note(metadata)
        with self._lock:
            before = self._last_seen
        before = self.latest_step if before is None else before
        before = step - 1 if before is None or before >= step else before
        if now or self.is_due(before, step):
            memory = callbacks if isinstance(callbacks, Memory) else remembered(callbacks)
            values = self._numbers(logs, evaluated)
            started, earlier = self._start(step, state, data, values, model, memory, noted, again)
        else:
            started, earlier = False, self._root.failures.oldest()
        with self._lock:
            self._last_seen = step  # not before: a save that could not be started is still due
        also = f"The save of step {step} was started." if started else f"No save of step {step} was needed."
        self._root.failures.tell(earlier, also)
        return started

    def _numbers(self, logs: Mapping[str, Any] | None, evaluated: bool) -> dict[str, float]:
        """The numbers of logs, after checking that `keep_best` is among them, or was in earlier ones."""
        values = numbers(logs)
        for name in tuple(self._unranked) if logs else ():
            if is_unranked(name, values, evaluated=evaluated) and not self._root.logged(name):
                raise unranked(name, values)
        self._unranked = [name for name in self._unranked if name not in values]
        return values

    def _start(
        self,
        step: int,
        state: Any,
        data: Any,
        logs: Mapping[str, float],
        model: Any,
        memory: Memory,
        noted: dict[str, Any] | None,
        again: bool,
    ) -> tuple[bool, Any]:
        """Starts a save, unless this manager has this step already; whether, and what failed before."""
        with self._root.turn():
            earlier = self._root.failures.oldest()
            newer = self._root.newer(step)
            if newer is not None and step not in self._root.owners:
                raise stale(self.directory, step, newer)
            if newer is not None and not (again and len(self._root.steps()) > 1):
                return False, earlier
            with gc_pause.gc_paused():  # until it continues in the background
                flat, keys = checked(state)
                position = data_positions.position(data)
                described, assets = state_metadata(state, model)
                metadata = dataclasses.replace(described, keys=keys, data=position, note=noted)
                self._root.save(step, flat, data, logs, metadata, memory, assets, again=newer is not None)
                self._rule.saved()
        return True, earlier

    def keep(self, steps: Iterable[int]) -> None:
        """Lets steps stay that `max_to_keep` would remove, as long as this manager is used.

        Args:
            steps: the numbers of the steps.

        Raises:
            TypeError: if they are not an iterable.
        """
        self._root.keep(steps)

    def is_due(self, before: int, step: int) -> bool:
        """Whether a save is due by `save_every` after a step.

        Args:
            before: the step before it.
            step: the step.

        Returns:
            True if so.

        Raises:
            TypeError: if they are not numbers.
        """
        return self._rule.is_due(before, step)

    def restore(
        self,
        like: Target,
        *,
        step: int | None = None,
        data: Any = None,
        include: Include = None,
        rename: Rename = None,
        partial: bool = False,
        keys: str | None = None,
        verify: bool = True,
        cast: bool = False,
    ) -> Target:
        """Restores a step into what `like` is; see `restore` for the arguments.

        Args:
            like: the target; see `restore`.
            step: which step; None for the newest.
            data: an iterator that is set to the stored position.
            include: which leaves; see `restore`.
            rename: how stored paths are called in `like`; see `restore`.
            partial: whether what matches is enough.
            verify: whether checksums are compared; see `restore`. Damaged steps that were passed
                over are renamed to ``<step>.damaged``.
            cast: whether leaves are brought to the dtypes of `like`; see `restore`.
            keys: ``"path"`` for names that are Keras's paths; see `restore`.

        Returns:
            A tree of the structure of `like`, or `like` itself, filled, if it is a model or module.

        Raises:
            CheckpointError: if there is no such step, or an earlier save failed.
            CorruptCheckpointError: if it is damaged; with `step` None, if all are.
            StructureMismatchError: if not every leaf has its counterpart.
        """
        options = RestoreOptions(include, rename, partial, verify, cast, data, keys)
        with self._root.reading():
            self.wait()
            filled: Target
            filled, folder, passed_over = from_newest(
                candidates(self.directory, step),
                lambda folder: restored(folder, like, options),
            )
            self._root.put_aside(passed_over)
        self._root.take(orbax_io.step_of(folder.name))
        return filled

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return max(self._root.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The best step by `keep_best`, by the first of several rules; None if there is none."""
        return self._best_by(*self._best[0]) if self._best else None

    @property
    def best_steps(self) -> dict[str, int | None]:
        """The best step by each rule of `keep_best`, by the name in the logs."""
        return {name: self._best_by(name, mode) for name, mode in self._best}

    def _best_by(self, name: str, mode: str) -> int | None:
        logged = self._root.logged(name)
        sign = 1 if mode == "max" else -1
        return max(logged, key=lambda step: (sign * logged[step], step), default=None)

    def all_steps(self) -> list[int]:
        """The steps in the folder, ascending."""
        return sorted(self._root.steps())

    def delete(self, step: int) -> None:
        """Removes a step, whatever rule keeps it; waits for a save or a restore in this process.

        Args:
            step: its number. It can be saved again.

        Raises:
            CheckpointNotFoundError: if there is no such step.
            CheckpointError: if it can't be removed.
        """
        self._root.delete(step)

    def metrics(self, step: int) -> dict[str, float]:
        """The numbers of the logs that were saved with a step.

        Args:
            step: its number.

        Returns:
            The numbers by name; empty if none were logged.

        Raises:
            CheckpointNotFoundError: if there is no such step.
        """
        return self._root.metrics(step)

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved with a step as ``metadata=``.

        Args:
            step: its number.

        Returns:
            A dict of JSON types; empty if nothing was given, or other code wrote the step.

        Raises:
            CheckpointNotFoundError: if there is no such step.
            CorruptCheckpointError: if it is damaged.
        """
        return orbax_io.read_note(self._root.folder_of(step))

    @property
    def is_saving(self) -> bool:
        """Whether a save runs in the background, in this folder and process."""
        return self._root.is_saving

    def wait(self) -> None:
        """Returns when the last save that was started is on disk, whichever thread started it.

        Raises:
            CheckpointError: if that save failed; where several threads wait, in one of them.
        """
        self._root.wait()

    def close(self) -> None:
        """Waits for the last save, and lets go of the folder; a second call does nothing.

        Raises:
            CheckpointError: if the last save failed.
        """
        self._root.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            log.error("%s", failure)
            error.add_note(f"A checkpoint could not be written: {failure}")
