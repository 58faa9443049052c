"""Writers for each kind of file or folder."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import model_configs, optimizer_extras, orbax_io
from keras_flax_bridge.checkpoint.checks import is_packed
from keras_flax_bridge.checkpoint.groups import groups
from keras_flax_bridge.checkpoint.matching import plan
from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.options import RestoreOptions
from keras_flax_bridge.checkpoint.readers import NOT_IN_KERAS_FILES, Contents, Header, save_tensors
from keras_flax_bridge.checkpoint.saving import versions
from keras_flax_bridge.checkpoint.targets import target_of
from keras_flax_bridge.cli.files.leaves import Leaves
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.state.report import SLOT, kind_of
from keras_flax_bridge.tree.paths import Flat, Path, join_path, nest_paths


@dataclass
class Job:
    """The input of a writer: leaves, a function that builds their model, and a layout.

    `given` is True if the model was passed separately.
    """

    leaves: Leaves
    model: Callable[[], Any]
    given: bool
    layout: str

    @property
    def source(self) -> Contents:
        """The source of the leaves."""
        return self.leaves.source

    @cached_property
    def config(self) -> Any:
        """The config of the given model, after checking the leaves against it, or the stored config."""
        if not self.given:
            return self.source.config
        config = model_configs.of_model(_filled(self)[0])
        gc.collect()  # models hold themselves
        give_back()
        return config


class Written(NamedTuple):
    """The result of a writer.

    Attributes:
        names: the leaf that each written name holds.
        left: omitted leaves, by reason.
        notes: remarks for the user.
        started: names whose leaves are not in the source and are initialized by the model.
    """

    names: dict[Path, Path]
    left: dict[Path, str]
    notes: list[str]
    started: frozenset[Path] = frozenset()


_NO_CONFIG = "the config of the model has no place in a plain tree: keep the source, or the model's code"


def _to_checkpoint(path: FilePath, job: Job) -> Written:
    found = job.source.metadata  # only metadata that does not depend on where the leaves are stored
    metadata = orbax_io.Metadata(
        versions=versions(),
        model=job.config or job.source.config or None,
        no_model=found.no_model or None,
        weight_map=found.weight_map or None,
        keys=found.keys,
        data=found.data or None,
    )
    orbax_io.save(path, job.leaves.all(), None, metadata, packed=is_packed(job.layout))
    return _all(job, {}, ["the position of a Grain iterator stays behind"] if _has_grain(job) else [])


def _has_grain(job: Job) -> bool:
    return job.source.metadata.grain is not None


def _to_flax(path: FilePath, job: Job) -> Written:
    reasons = {
        "Orbax can't store arrays without elements": orbax_io.is_empty,
        "no array": lambda x: isinstance(x, str),
    }
    left = _left(job, reasons)
    orbax_io.save_plain(path, nest_paths(_kept(job, left)))
    return _all(job, left, [_NO_CONFIG] if job.config else [])


def _to_safetensors(path: FilePath, job: Job) -> Written:
    left = _left(job, {"no array": lambda leaf: isinstance(leaf, str)})
    header = Header(model=job.config or None)
    kept = {name: np.asarray(leaf) for name, leaf in _kept(job, left).items()}
    numbers = [join_path(name) for name in kept if not hasattr(job.leaves.specs[name], "dtype")]
    save_tensors(path, kept, header)
    return _all(job, left, [f"numbers that are arrays now: {', '.join(numbers)}"] if numbers else [])


def _left(job: Job, reasons: dict[str, Callable[[Any], bool]]) -> dict[Path, str]:
    specs = job.leaves.specs.items()
    return {name: why for why, is_so in reasons.items() for name, leaf in specs if is_so(leaf)}


def _kept(job: Job, left: dict[Path, str]) -> Flat:
    return job.leaves.some(name for name in job.leaves.specs if name not in left)


def _all(job: Job, left: dict[Path, str], notes: list[str]) -> Written:
    return Written({name: name for name in job.leaves.specs if name not in left}, left, notes)


def _to_keras(path: FilePath, job: Job, *, save: Callable[[Any, FilePath], list[str]]) -> Written:
    model, done = _filled(job)
    unknown = {
        p: NOT_IN_KERAS_FILES[kind_of(p)] for p in job.leaves.specs if kind_of(p) in NOT_IN_KERAS_FILES
    }
    with keras_internals.weights_on_disk():
        return done._replace(left={**unknown, **done.left}, notes=save(model, path))


_NO_OPTIMIZER = "the model has no optimizer of Keras's with such slots"


def _filled(job: Job) -> tuple[Any, Written]:
    """The model with the leaves in it, and which of them it took."""
    done: list[Written] = []
    model = keras_internals.filled(job.model, lambda model: done.append(_fill(model, job.leaves)))
    return model, done[-1]


def _fill(model: Any, leaves: Leaves) -> Written:
    """Writes leaves to a model, a few at a time; slots that are not given keep their initial values.

    Raises:
        CheckpointError: if these are several models.
        StructureMismatchError: listing all leaves that are missing, unexpected or of another shape or dtype.
    """
    where = f"the model of {leaves.source.path}"
    if not isinstance(model, keras.Model):
        raise CheckpointError(
            where,
            got=f"several models ({', '.join(model)})",
            expected="one model: a Keras file holds only one",
            fix="Load them with kfb.load_model, and save each.",
        )
    given, weights = _parted(leaves.specs)
    target = target_of(model, tops={path[0] for path in leaves.specs})
    if not given.keys() & target.wanted.keys():  # another optimizer, or none on either side
        _restart(model)
        target = target_of(model, tops={path[0] for path in leaves.specs})
        own, wanted = _parted(target.wanted)
        left, given = dict.fromkeys(given, _NO_OPTIMIZER), {}
    else:
        slots, wanted = _parted(target.wanted)
        wanted, own, left = {**wanted, **slots}, {}, {}
    stored = {**weights, **given}
    names = plan(stored, target._replace(wanted=wanted, scope=None), where, RestoreOptions())
    with leaves.reading():
        for group in groups({path: stored[place] for path, place in names.items()}):
            values = leaves.some(names[path] for path in group)
            target.put({path: values[names[path]] for path in group})
            del values  # before the next are read
    return Written(names, left, [], frozenset(own))


def _parted(flat: Flat) -> tuple[Flat, Flat]:
    """Slots, and weights; not what Keras doesn't write."""
    kept = {path: leaf for path, leaf in flat.items() if kind_of(path) not in NOT_IN_KERAS_FILES}
    slots = {path: leaf for path, leaf in kept.items() if kind_of(path) == SLOT}
    return slots, {path: leaf for path, leaf in kept.items() if path not in slots}


def _restart(model: Any) -> None:
    """Gives a compiled model a new optimizer."""
    if model.compiled:
        model.optimizer = keras_internals.rebuilt(model.optimizer, {id(v): v for v in model.weights})


def _save_weights(model: Any, path: FilePath) -> list[str]:
    model.save_weights(path)
    return []


def _save_model(model: Any, path: FilePath) -> list[str]:
    model.save(path)
    note = optimizer_extras.write(path, model)
    return [] if note is None else [note]


WRITERS: dict[str, Callable[[FilePath, Job], Written]] = {
    "checkpoint": _to_checkpoint,
    "flax": _to_flax,
    "keras": partial(_to_keras, save=_save_model),
    "weights.h5": partial(_to_keras, save=_save_weights),
    "safetensors": _to_safetensors,
}
