"""The manager of a folder of checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from keras_flax_bridge.checkpoint import data_positions, orbax_io
from keras_flax_bridge.checkpoint.checks import best_rule, is_count, is_packed, require, stale
from keras_flax_bridge.checkpoint.locating import candidates, from_newest
from keras_flax_bridge.checkpoint.options import Include, Rename, RestoreOptions
from keras_flax_bridge.checkpoint.restoring import restored
from keras_flax_bridge.checkpoint.saving import checked, numbers, state_metadata, step_of
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
            are smaller, accuracies and other scores when they are larger.
        keep_every: steps that are multiples of this number stay as well; None for none.
        save_every: `save` writes only when a multiple of this many steps was reached.
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
        keep_best: str | tuple[str, str] | None = None,
        keep_every: int | None = None,
        save_every: int = 1,
        layout: str = "tree",
    ):
        fix = "save_every=1 saves after every call of save."
        require(
            is_count(save_every), "save_every", repr(save_every), "a whole number of steps, 1 or more", fix
        )
        for name, kept in {"max_to_keep": max_to_keep, "keep_every": keep_every}.items():
            allowed = kept is None or is_count(kept)
            fix = f"{name}=None sets no limit." if name == "max_to_keep" else f"Leave {name}= out."
            require(allowed, name, repr(kept), "None, or a whole number of steps, 1 or more", fix)
        self.directory = orbax_io.absolute(directory)
        self._best = None if keep_best is None else best_rule(keep_best)
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
        now: bool = False,
    ) -> bool:
        """Saves a state in the background, if a save is due.

        Args:
            state: a `TrainState`, this package's or Flax's; its `step` numbers the checkpoint.
            data: a Grain iterator, or any with `get_state` (bytes or JSON types) and `set_state`;
                its position at this moment is stored.
            logs: scalars to store, other values are omitted; `keep_best` ranks by one of them.
            model: the Keras model whose config is stored for `load_model`; None for
                the one that the state was taken from.
            now: True saves regardless of `save_every`.

        Returns:
            True if a save was started; False if none is due, or this step is already there because
            this manager wrote or restored it.

        Raises:
            CheckpointError: if the folder holds this step or newer ones of another run. Or if an earlier
                save failed: then the message says whether the save of this state was started.
            OwnershipError: if a leaf was donated.
            StructureMismatchError: if a leaf is of a kind that can't be restored; lists all of them, and
                nothing was written.
        """
        step = step_of(state)
        if now or self._is_due(step):
            started, earlier = self._start(step, state, data, logs, model)
        else:
            started, earlier = False, self._root.failures.oldest()
        with self._lock:
            self._last_seen = step  # not before: a save that could not be started is still due
        also = f"The save of step {step} was started." if started else f"No save of step {step} was needed."
        self._root.failures.tell(earlier, also)
        return started

    def _start(
        self, step: int, state: Any, data: Any, logs: Mapping[str, Any] | None, model: Any
    ) -> tuple[bool, Any]:
        """Starts a save, unless this manager has this step already; whether, and what failed before."""
        with self._root.turn():
            earlier = self._root.failures.oldest()
            newer = self._root.newer(step)
            if newer is not None and step in self._root.owners:
                return False, earlier
            if newer is not None:
                raise stale(self.directory, step, newer)
            with gc_pause.gc_paused():  # until it continues in the background
                flat, keys = checked(state)
                values = numbers(logs)
                position = data_positions.position(data)
                metadata = dataclasses.replace(state_metadata(state, model), keys=keys, data=position)
                self._root.save(step, flat, data, values, metadata)
        return True, earlier

    def _is_due(self, step: int) -> bool:
        """Whether a multiple of `save_every` is between the last step seen and this one."""
        with self._lock:
            before = self._last_seen if self._last_seen is not None else self.latest_step
        before = step - 1 if before is None or before >= step else before
        return step // self.save_every > before // self.save_every or step == 0

    def restore(
        self,
        like: Target,
        *,
        step: int | None = None,
        data: Any = None,
        include: Include = None,
        rename: Rename = None,
        partial: bool = False,
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

        Returns:
            A tree of the structure of `like`, or `like` itself, filled, if it is a model or module.

        Raises:
            CheckpointError: if there is no such step, or an earlier save failed.
            CorruptCheckpointError: if it is damaged; with `step` None, if all are.
            StructureMismatchError: if not every leaf has its counterpart.
        """
        options = RestoreOptions(include, rename, partial, verify, cast, data)
        with self._root.reading():
            self.wait()
            filled: Target
            filled, folder, passed_over = from_newest(
                candidates(self.directory, step),
                lambda folder: restored(folder, like, options),
            )
            self._root.put_aside(passed_over)
        self._root.take(int(folder.name))
        return filled

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return max(self._root.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the best value of `keep_best`, or None if there is none."""
        if self._best is None:
            return None
        name, mode = self._best
        logged = self._root.logged(name)
        sign = 1 if mode == "max" else -1
        return max(logged, key=lambda step: (sign * logged[step], step), default=None)

    def all_steps(self) -> list[int]:
        """The steps in the folder, ascending."""
        return sorted(self._root.steps())

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
