"""The folder in which Orbax writes a checkpoint until it is whole, and gives it its name."""

from __future__ import annotations

import contextlib
import os
import shutil
import time

import jax

from keras_flax_bridge.checkpoint.orbax_io.api import FilePath


class Unfinished:
    """What a save of this process writes beside `final`; after a failure it takes room, and is of no use.

    Another process may write a folder of the same name. The own one is known by a handle that is kept open:
    as long as it is, the system gives its number to no other.
    """

    def __init__(self, final: FilePath):
        self._final = final
        self._others = set(_beside(final))
        self._handles: dict[FilePath, int] = {}

    def hold(self) -> None:
        """To be called when the save was started; waits a moment for its folder, and takes hold of it."""
        for pause in (0.0, 0.001, 0.005, 0.02, 0.1):
            time.sleep(pause)
            for folder in _beside(self._final):
                with contextlib.suppress(OSError):  # a system that opens no folders
                    self._handles[folder] = os.open(folder, os.O_RDONLY)
            if self._handles or self._final.is_dir():
                return

    def remove(self) -> None:
        """Removes it, and lets go."""
        if jax.process_index() == 0:
            for folder in _beside(self._final):
                if self._is_own(folder):
                    shutil.rmtree(folder, ignore_errors=True)
        self.release()

    def _is_own(self, folder: FilePath) -> bool:
        if folder not in self._handles:
            return folder not in self._others
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._handles[folder]), folder.stat())
        return False

    def release(self) -> None:
        """Lets go of the folder, of which the save made a checkpoint."""
        while self._handles:
            os.close(self._handles.popitem()[1])


def _beside(final: FilePath) -> list[FilePath]:
    with contextlib.suppress(OSError):
        begin = f"{final.name}.orbax-checkpoint-tmp"
        return [final.parent / name for name in os.listdir(final.parent) if name.startswith(begin)]
    return []
