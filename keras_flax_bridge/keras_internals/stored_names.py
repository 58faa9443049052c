"""Keras's files: the names under which they hold the variables of a model, and how they are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.saving import saving_lib

from keras_flax_bridge.keras_internals.bounds import PATCHING
from keras_flax_bridge.keras_internals.models import collect
from keras_flax_bridge.tree.paths import Path


class _Recorder(saving_lib.H5IOStore):
    """A file stub that records the name under which Keras stores each variable."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._group = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> Any:
        self._group = f"{path}/vars" if path else "vars"
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, keras.Variable):  # others are computed, and are no variable's value
            self.names[id(value)] = f"{self._group}/{key}"


def names_in_files(model: Any) -> dict[Path, str]:
    """The name in Keras's files of each variable that is written unchanged; no value is needed.

    A variable whose value is computed on writing, such as a kernel with LoRA, has none.
    """
    recorder, optimizer = _Recorder(), getattr(model, "optimizer", None)
    # `_save_state`: Keras's own walk; what it would write of an optimizer are values, by their order
    saving_lib._save_state(model, recorder, None, "", {id(optimizer)})
    for i, variable in enumerate(getattr(optimizer, "variables", ())):
        recorder.names[id(variable)] = f"optimizer/vars/{i}"
    return {
        (tree, *entry.path): recorder.names[id(entry.variable)]
        for tree, entries in collect(model)._asdict().items()
        for entry in entries
        if id(entry.variable) in recorder.names
    }


@contextlib.contextmanager
def weights_on_disk() -> Iterator[None]:
    """A context in which Keras writes and unpacks the weights of a `.keras` file on disk, not in memory.

    Keras does this itself if the weights are large compared with the free memory.
    """
    with PATCHING:
        # `is_memory_sufficient`: nothing public decides it
        before = saving_lib.is_memory_sufficient
        saving_lib.is_memory_sufficient = lambda model: False
        try:
            yield
        finally:
            saving_lib.is_memory_sufficient = before
