"""Keras's files: the names under which they hold the variables of a model, and how they are written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras.src.saving import saving_lib

from keras_flax_bridge.keras_internals.bounds import PATCHING
from keras_flax_bridge.keras_internals.keys import has_auto_name
from keras_flax_bridge.keras_internals.models import all_layers, collect
from keras_flax_bridge.keras_internals.quantizing import quantizing_without_values
from keras_flax_bridge.keras_internals.values import holds_value
from keras_flax_bridge.tree.paths import Path


class _Recorder(saving_lib.H5IOStore):
    """A file stub that records the name under which Keras stores each variable."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.owners: dict[str, Any] = {}  # the name of an owner of variables, by its group
        self._group = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> Any:
        self._group = f"{path}/vars" if path else "vars"
        self.owners[self._group] = (metadata or {}).get("name")
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, keras.Variable):  # others are computed, and are no variable's value
            self.names[id(value)] = f"{self._group}/{key}"


def names_in_files(model: Any) -> dict[Path, str]:
    """The name in Keras's files of each variable that is written unchanged; no value is needed.

    A variable whose value is computed on writing, such as a kernel with LoRA, has none.
    """
    recorder, optimizer = _recorded(model), getattr(model, "optimizer", None)
    for i, variable in enumerate(getattr(optimizer, "variables", ())):
        recorder.names[id(variable)] = f"optimizer/vars/{i}"
    return {
        (tree, *entry.path): recorder.names[id(entry.variable)]
        for tree, entries in collect(model)._asdict().items()
        for entry in entries
        if id(entry.variable) in recorder.names
    }


def owners_in_files(model: Any) -> dict[str, re.Pattern[str]]:
    """What the layers that own variables may be called in Keras's files, by group.

    A name that Keras gave may have any number, which differs from one process to the next.
    """
    recorder = _recorded(model)
    groups = {name.rpartition("/")[0] for name in recorder.names.values()} - {"vars"}
    given = {layer.name for layer in all_layers(model) if not has_auto_name(layer)}
    return {group: _called(recorder.owners[group], given) for group in groups}


def _called(name: Any, given: set[str]) -> re.Pattern[str]:
    if name in given:
        return re.compile(re.escape(name))
    return re.compile(re.escape(re.sub(r"_\d+$", "", str(name))) + r"(_\d+)?")


def _recorded(model: Any) -> _Recorder:
    recorder = _Recorder()
    empty = [e.variable for part in collect(model) for e in part if not holds_value(e.variable)]

    def walk() -> None:
        # `_save_state`: Keras's own walk; what it would write of an optimizer are values, by their order
        saving_lib._save_state(model, recorder, None, "", {id(getattr(model, "optimizer", None))})

    def traced(values: list[Any]) -> None:
        with (
            keras.StatelessScope(list(zip(empty, values, strict=True))),
            quantizing_without_values(jnp.zeros),
        ):
            walk()

    if empty:  # what layers compute on writing, such as a kernel with LoRA, has a shape
        jax.eval_shape(traced, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in empty])
    else:
        walk()
    return recorder


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
