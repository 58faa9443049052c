"""A root folder of numbered steps, written asynchronously."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import jax

from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.callback_memory import NO_MEMORY, Memory
from keras_flax_bridge.checkpoint.orbax_io.api import FilePath, failed, ocp, speaking
from keras_flax_bridge.checkpoint.orbax_io.background import OPERATIONS, Failure, Failures, Pending, folder_of
from keras_flax_bridge.checkpoint.orbax_io.metadata import Metadata, require_marks
from keras_flax_bridge.checkpoint.orbax_io.retention import Kept, Retention, logged_number
from keras_flax_bridge.checkpoint.orbax_io.steps import numbered_steps_in, steps_in
from keras_flax_bridge.checkpoint.orbax_io.unfinished import Unfinished
from keras_flax_bridge.checkpoint.orbax_io.writing import saving_context, size_on_disk, written
from keras_flax_bridge.errors import CheckpointError, CheckpointNotFoundError
from keras_flax_bridge.tree.paths import Path


class Root:
    """A folder of numbered steps, written asynchronously, old ones removed; any thread may call.

    Orbax's checkpointer is not made for threads, and keeps an error that it raised once: it is used with the
    folder's lock held, and replaced after a failure.

    Attributes:
        owners: the steps that this manager wrote or restored, and by which thread.
        failures: its saves that failed, until a caller is told.
    """

    def __init__(self, path: FilePath, kept: Kept, *, packed: bool):
        self.path = path
        self.owners: dict[int, object] = {}
        self._packed = packed
        if path.exists() and not path.is_dir():
            raise CheckpointError(
                str(path), got="a file", expected="a folder, or nothing yet", fix="Take another path."
            )
        self._folder = folder_of(path)
        self._retention = Retention(path, self._folder, kept)
        self.failures = Failures()
        self._threads = threading.local()
        self._checkpointer: Any = None
        self._version = -1  # of the folder, when Orbax last read its list
        self._spoiled: tuple[int, Unfinished] | None = None  # of a save that failed or was interrupted
        self._failed = False  # whether the last save did
        weakref.finalize(self, self.failures.report)
        with self._folder.turn():
            self._ready()

    # --- saving

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no save runs in the folder, and lets no other start meanwhile."""
        with self._folder.turn():
            self._recover()
            yield

    def newer(self, step: int) -> int | None:
        """The newest step that forbids to save this one; the step itself if it is this manager's already.

        Steps grow within a thread, and beyond those of other runs. Threads that save side by side may do so
        in any order.
        """
        there = list(numbered_steps_in(self.path))  # those beside which it is written
        if step in self.owners and any(step <= other for other in there):
            return step
        thread = self._thread()
        return max(
            (s for s in there if s >= step and self.owners.get(s, thread) is thread),
            default=None,
        )

    def save(
        self,
        step: int,
        flat: Mapping[Path, Any],
        data: Any,
        logs: Any,
        metadata: Metadata,
        memory: Memory = NO_MEMORY,
        assets: Assets = NO_ASSETS,
        *,
        again: bool = False,
    ) -> None:
        """Starts to write a step, `again` in the place of the one that is there; to be called in a `turn`."""
        if not self.path.is_dir():  # Orbax would wait minutes for a folder that nobody makes
            raise CheckpointError(
                str(self.path),
                got="a folder that is gone",
                expected="the folder in which earlier steps were written",
                fix="Put it back, or open a new manager.",
            )
        self._ready()
        items, custom = written(flat, data, metadata, packed=self._packed, memory=memory, assets=assets)
        needed, unfinished = size_on_disk(flat), Unfinished(self.path / str(step))
        self._retention.starting = step
        try:
            with OPERATIONS.starting(), self._context(needed):
                response = self._checkpointer.save_checkpointables_async(
                    step,
                    items,
                    overwrite=again,
                    force=True,  # whether a save is due was decided; Orbax skips without a word
                    metrics=logs or None,
                    custom_metadata=custom,
                )
            answer = partial(_answer, response, unfinished)
            self._begin(step, Pending(answer, partial(self._settle, step, needed, unfinished)))
        except BaseException as error:
            self._spoiled = step, unfinished
            self.owners.pop(step, None)
            if not isinstance(error, Exception):  # an interruption: what has begun is cleaned up later
                raise
            self._recover()
            raise failed(self.path / str(step), "saving", error, needed=needed) from error

    def _context(self, needed: int) -> Any:
        alone = jax.process_count() == 1
        first = (alone and self._failed) or OPERATIONS.folder_first(self.path, needed)
        return saving_context(needed, folder_first=first)

    def _begin(self, step: int, pending: Pending) -> None:
        """Waits for a save in the background, which is settled when the lock is free again."""
        self.owners[step] = self._thread()
        self._folder.version += 1
        self._version = self._folder.version
        pending.start()
        if not pending.done.is_set():
            self._folder.pending = pending

    def _settle(self, step: int, needed: int, unfinished: Unfinished, error: BaseException | None) -> None:
        if error is None:
            unfinished.release()
        else:
            unfinished.remove()
            self.failures.add(Failure(self.path / str(step), step, error, needed))
        with self._folder.lock:
            self._failed = error is not None
            if error is not None:
                self._spoiled = step, unfinished
                if step not in self.steps():
                    self.owners.pop(step, None)
            self._folder.pending = None

    def wait(self) -> None:
        """Returns when the last save is on disk, and raises what went wrong with it, to one caller."""
        self._folder.join()
        self.failures.tell(self.failures.oldest())

    def close(self) -> None:
        """Waits for the last save, and lets go of Orbax's threads; what comes later takes new ones."""
        with self.turn():
            checkpointer, self._checkpointer = self._checkpointer, None
            if checkpointer is not None:
                with speaking(self.path, "closing"):
                    checkpointer.close()
        self.failures.tell(self.failures.oldest())

    # --- Orbax's checkpointer, with the lock held

    def _ready(self) -> None:
        """Makes the checkpointer where there is none, and lets it read what other managers did."""
        with speaking(self.path, "opening"):
            if self._checkpointer is None or self._version != self._folder.version:
                require_marks(self.path)
            if self._checkpointer is None:
                with saving_context(0):
                    self._checkpointer = ocp().training.Checkpointer(
                        self.path, preservation_policy=self._retention
                    )
            elif self._version != self._folder.version:
                self._checkpointer.reload()
        self._version = self._folder.version

    def _recover(self) -> None:
        """After a save that failed: lets go of the checkpointer, and of what was written of the step."""
        if self._spoiled is None:
            return
        (step, unfinished), checkpointer = self._spoiled, self._checkpointer
        if checkpointer is not None:
            with suppress(Exception):  # it raises once more what was raised already
                checkpointer.close()
        self._checkpointer = None
        unfinished.remove()
        if step in self.steps():  # it was interrupted when it was as good as done
            self.owners.setdefault(step, self._thread())
        self._spoiled = None

    def _thread(self) -> object:
        """What stands for the calling thread; idents are used again, this is not."""
        return self._threads.__dict__.setdefault("token", object())

    def keep(self, steps: Iterable[int]) -> None:
        """Lets steps stay whatever the policy says."""
        self._retention.kept.update(steps)

    # --- reading

    def reading(self) -> Any:
        """While a restore runs, no save of this process removes a step."""
        return self._folder.reading()

    def take(self, step: int | None) -> None:
        """From now on the run goes on at this step: later ones, which are on disk, are another run's."""
        if step is None:
            return  # what others wrote has no number
        with self._folder.lock:
            self.owners = {s: owner for s, owner in self.owners.items() if s < step}
            self.owners[step] = self._thread()

    def put_aside(self, folders: Sequence[FilePath]) -> None:
        """Takes damaged steps out of the run: their folders get another name, and stay."""
        with self._folder.lock:
            for folder in folders if jax.process_index() == 0 else ():
                names = (f"{folder.name}.damaged{i or ''}" for i in count())
                folder.rename(next(path for path in map(self.path.joinpath, names) if not path.exists()))
            self._folder.version += bool(folders)  # Orbax keeps a list of its own

    def steps(self) -> list[int]:
        """The steps in the folder, in order."""
        # Orbax's own list doesn't know what other processes write and delete
        return list(steps_in(self.path))

    @property
    def is_saving(self) -> bool:
        """Whether a save of this process runs in the folder."""
        pending = self._folder.pending
        return pending is not None and not pending.done.is_set()

    def folder_of(self, step: int) -> FilePath:
        """The folder of a step.

        Raises:
            CheckpointNotFoundError: if there is none.
        """
        there = steps_in(self.path)
        if step not in there:
            raise CheckpointNotFoundError(
                str(self.path),
                got=f"step={step}",
                expected=f"one of the steps {list(there)}" if there else "a step; there is none yet",
                fix="manager.all_steps() lists them; a save in the background is there after manager.wait().",
            )
        return there[step]

    def delete(self, step: int) -> None:
        """Removes a step, when no save and no restore of this process runs in the folder."""
        while True:
            with self.turn():
                if not self._folder.readers:
                    return self._delete(step)
            time.sleep(0.01)

    def _delete(self, step: int) -> None:
        folder = self.folder_of(step)
        self.owners.pop(step, None)
        self._folder.version += 1
        if jax.process_index() == 0:
            with speaking(
                folder, "deleting"
            ):  # under another name first, so that no half of a step is listed
                names = (f"{folder.name}.deleted{i or ''}" for i in count())
                place = next(path for path in map(self.path.joinpath, names) if not path.exists())
                shutil.rmtree(folder.rename(place))

    def metrics(self, step: int) -> dict[str, float]:
        """The numbers that were logged with a step; empty if there were none."""
        self.folder_of(step)
        found = self._logs()
        if step not in found:  # by another process, while a save runs
            self._folder.join()
            found = self._logs()
        logs = found.get(step, {})
        return {name: value for name, value in logs.items() if isinstance(value, (int, float))}

    def logged(self, name: str) -> dict[int, float]:
        """A logged value by step, for the steps on disk that have one."""
        found = {step: logged_number(logs, name) for step, logs in self._logs().items()}
        return {step: value for step, value in found.items() if value is not None}

    def _logs(self) -> dict[int, Mapping[str, Any]]:
        """The logged values of the steps on disk."""
        there = set(self.steps())
        if not there:
            return {}
        with self._folder.lock:
            if self._folder.pending is None:
                self._recover()
                self._version = -1  # other processes write too
                self._ready()
            found = {c.step: c.metrics for c in self._checkpointer.checkpoints}
        return {step: logs for step, logs in found.items() if step in there and isinstance(logs, Mapping)}


def _answer(response: Any, unfinished: Unfinished) -> None:
    unfinished.hold()
    response.result()
