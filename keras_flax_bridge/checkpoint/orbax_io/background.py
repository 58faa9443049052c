"""Saves that run in the background: one at a time in a folder, whatever manager or thread starts them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from keras_flax_bridge.checkpoint.orbax_io.api import FilePath, failed
from keras_flax_bridge.errors import CheckpointError

log = logging.getLogger("keras_flax_bridge")

_WAITERS = ThreadPoolExecutor(256, "keras_flax_bridge save")  # a thread that is idle is used again


class Operations:
    """The order that Orbax's operations need: it numbers them by one counter of the whole process.

    The threads of a save tell each other by that number that the folder is made. So no other operation may
    begin while a save is being started; and where a restore runs, whose beginning can't be told from the
    rest of it, the folder is made before the threads begin.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loads = 0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While a save is being started."""
        with self._lock:
            yield

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While something is loaded."""
        with self._lock:
            self._loads += 1
        try:
            yield
        finally:
            with self._lock:
                self._loads -= 1

    def folder_first(self, path: FilePath, needed: int) -> bool:
        """Whether the folder of a save is to be made before the save goes on in the background.

        That takes longer. But where it can't be made in the background, Orbax's threads wait for it for
        many minutes, with the whole state in their hands. Several processes must all decide alike: they
        take what is Orbax's default.
        """
        if jax.process_count() > 1:
            return False
        try:
            room = os.statvfs(path)
            free = room.f_bavail * room.f_frsize
        except (OSError, AttributeError):  # a system without statvfs
            return True
        full = free < 2 * needed or (room.f_files > 0 and room.f_favail < 100)
        return bool(self._loads or full or not os.access(path, os.W_OK | os.X_OK))


OPERATIONS = Operations()


class Failure(NamedTuple):
    """A save that failed, until a caller is told."""

    path: FilePath
    step: int
    cause: BaseException
    needed: int

    def error(self, also: str = "") -> CheckpointError:
        """What the caller is told; `also` is one more sentence."""
        doing = f"saving step {self.step} in the background"
        return failed(self.path, doing, self.cause, needed=self.needed, also=also)


class Failures:
    """The failed saves of one manager: each is given to exactly one caller."""

    def __init__(self) -> None:
        self._waiting: deque[Failure] = deque()

    def add(self, failure: Failure) -> None:
        """Keeps a failure until a call of the user can raise it."""
        self._waiting.append(failure)

    def oldest(self) -> Failure | None:
        """The oldest failure that nobody was told of."""
        return next(iter(tuple(self._waiting)), None)

    def tell(self, failure: Failure | None, also: str = "") -> None:
        """Raises a failure, unless another caller was told of it meanwhile."""
        if failure is None:
            return
        try:
            self._waiting.remove(failure)  # atomic: two callers never get the same one
        except ValueError:
            return
        raise failure.error(also) from failure.cause

    def report(self) -> None:
        """Logs what no caller was told of: nobody is left who could be."""
        while self._waiting:
            log.error("%s", self._waiting.popleft().error())


class Pending:
    """A save that was started; `done` is set once it is on disk, or failed and cleaned up after.

    Another thread waits for it. So any number of callers can wait, a caller that is interrupted leaves
    nothing half done, and a failure is settled although nobody asks.
    """

    def __init__(self, answer: Callable[[], Any], settle: Callable[[BaseException | None], None]):
        self.done = threading.Event()
        self._answer, self._settle = answer, settle

    def start(self) -> None:
        """Begins to wait, in the background."""
        _PENDING.add(self)
        try:
            _WAITERS.submit(self._run)
        except RuntimeError:  # the system gives no more threads, or the interpreter ends
            self._run()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._answer()
        except BaseException as raised:
            error = raised
        try:
            self._settle(error)
        finally:
            _PENDING.discard(self)
            self.done.set()
            del self._answer, self._settle  # they hold the manager's folder


_PENDING: set[Pending] = set()


def _finish() -> None:
    for pending in tuple(_PENDING):
        pending.done.wait()


# `atexit` is too late: when the main thread ends, the executors that Orbax writes with are closed first. They
# are by a function that was registered so when they were imported; the one registered last is called first.
getattr(threading, "_register_atexit", lambda function: None)(_finish)


class Folder:
    """What the managers of one folder share in this process.

    Attributes:
        lock: held while a save is started, and while the lists of Orbax are read.
        pending: the save that runs, or None.
        version: a number that grows whenever steps come or go by one of the managers.
        readers: how many restores run; until they end, retention removes nothing.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pending: Pending | None = None
        self.version = 0
        self.readers = 0

    def join(self) -> None:
        """Returns when the save that runs now, if any, is settled."""
        pending = self.pending
        if pending is not None:
            pending.done.wait()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no save runs, and lets no other start meanwhile."""
        while True:
            self.join()
            with self.lock:
                if self.pending is None:
                    yield
                    return

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While steps are read, none of them is removed by this process."""
        with self.lock:
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1


_FOLDERS: weakref.WeakValueDictionary[FilePath, Folder] = weakref.WeakValueDictionary()
_OPENING = threading.Lock()


def folder_of(path: FilePath) -> Folder:
    """The one `Folder` of a path in this process."""
    with _OPENING:
        key = path.resolve()
        folder = _FOLDERS.get(key)
        if folder is None:
            folder = _FOLDERS[key] = Folder()
        return folder
