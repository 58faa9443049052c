"""Reads a checkpoint, or a file of Keras, into whatever is given."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from flax import nnx

from keras_flax_bridge.checkpoint import foreign, keras_files, model_configs, optimizer_sides, orbax_io
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.leaf_kinds import given_back
from keras_flax_bridge.checkpoint.matching import Include, Options, Rename, placement, plan
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.checkpoint.targets import target_of
from keras_flax_bridge.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    printable,
)
from keras_flax_bridge.state import gc_pause
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import PathLike, Target

log = logging.getLogger("keras_flax_bridge")


@words.door
def restore(
    path: PathLike,
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
    """Restores a checkpoint into what `like` is; every leaf on both sides is accounted for.

    Args:
        path: a checkpoint or a root folder of steps, of this package or of other code that uses Orbax,
            Keras's `OrbaxCheckpoint` among it; or a file of Keras's: ``.keras`` into anything,
            ``.weights.h5`` into the built model it was saved from.
        like: what comes back. A `TrainState`, concrete or abstract, with shardings: a state; where the
            checkpoint has the same optimizer on Keras's side and the state on optax's, or the reverse,
            as `TrainState.to_optax` makes it, it is converted. A
            `keras.Model`, or a dict of models: filled in place and returned, optimizer and metrics
            too where it is compiled, but for metrics that saw no data yet. An `nnx.Module`: updated
            in place and returned. Linen variables, a Flax `TrainState` or any other pytree: the
            same structure.
        step: which step of a root folder; None for the newest.
        data: an iterator that is set to the stored position.
        include: leaves to restore: a regular expression, or a list of path prefixes; the others
            stay as they are in `like`.
        rename: how stored paths are called in `like`: a dict, pairs of regular expression and
            replacement, or a function; or a `kfb.migrate.WeightMap` between a Keras and a Flax
            model.
        partial: True restores what matches and logs what doesn't.
        verify: whether every leaf is compared with the checksum that was written. With `step` None
            a damaged step is passed over for the newest that is whole, with a warning.
        cast: True brings leaves to the dtypes of `like`, within floating, whole and complex numbers.

    Returns:
        A tree of the structure of `like`, or `like` itself.

    Raises:
        CheckpointError: if there is no checkpoint, or it can't be read.
        CorruptCheckpointError: naming the leaves that are damaged.
        StructureMismatchError: if not every leaf has its counterpart, or none has; lists all of
            them, and nothing was assigned.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState, save
        >>> def build():
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> path, model = tempfile.mkdtemp() + "/one", build()
        >>> save(path, TrainState.from_keras(model))
        >>> other = restore(path, build())
        >>> bool((other.get_weights()[0] == model.get_weights()[0]).all())
        True
    """
    options = Options(include, rename, partial, verify, cast)
    return from_newest(candidates(path, step), lambda folder: restored(folder, like, data, options))[0]


@gc_pause.gc_paused()
def restored(folder: FilePath, like: Any, data: Any, options: Options) -> Any:
    """One checkpoint into what `like` is: planned, read and checked before anything is assigned."""
    if folder.name.endswith(".weights.h5"):
        return keras_files.restore_weights(folder, like)
    stored: Any = keras_files.KerasFile(folder) if folder.is_file() else orbax_io.Stored(folder)
    weights: Any = options.rename if hasattr(options.rename, "flax_values") else None  # a WeightMap
    if weights is not None:
        options = options._replace(rename=None)
    elif options.rename is None and isinstance(like, nnx.Module):
        weights = _map_for(like, stored)
    target = target_of(like, tops=foreign.tops(stored), weights=weights)
    names = foreign.names(stored, like, target)
    specs = {name: stored.specs[place] for name, place in names.items()}
    alike = options.include is None and options.rename is None and weights is None
    way = optimizer_sides.detour(like, target.wanted, specs) if alike else None
    if way is not None:
        return way.back(restored(folder, way.like, data, options))
    pairs = plan(specs, target, f"checkpoint {folder}", options)
    places = {path: names[name] for path, name in pairs.items()}
    values = stored.load({p: placement(stored.specs[p], target.wanted[w]) for w, p in places.items()})
    if options.verify:
        stored.require_whole(values)
    if data is not None:
        stored.load_data(data)
    return target.put({path: given_back(values[p], target.wanted[path]) for path, p in places.items()})


def _map_for(module: nnx.Module, stored: Any) -> Any:
    """The `WeightMap` of a module that `kfb.migrate` wrote, where other leaves than its own are stored."""
    target = target_of(module, tops=foreign.tops(stored))
    if not stored.metadata or target.wanted.keys() <= stored.specs.keys() | target.optional:
        return None
    from keras_flax_bridge.checkpoint.native_modules import map_for  # on first use: its tables take a while

    return map_for(module, stored.metadata, stored.path, stored.specs)


def stored_position(path: Any) -> Any:
    """The position of a data iterator in the newest checkpoint that can be read, as it gave it; or None."""
    read = from_newest(candidates(path, None), lambda folder: orbax_io.Stored(folder).metadata.get("data"))
    return (read[0] or {}).get("json")


def from_newest(
    folders: Sequence[FilePath], read: Callable[[FilePath], Any]
) -> tuple[Any, FilePath, Sequence[FilePath]]:
    """What `read` makes of the newest folder that is not damaged, which that was, and which were.

    Raises:
        CorruptCheckpointError: if all are damaged.
    """
    for i, (folder, older) in enumerate(zip(folders, [*folders[1:], None], strict=True)):
        try:
            return read(folder), folder, folders[:i]
        except CorruptCheckpointError as error:
            if older is None:
                raise
            log.error("%s", error)
            warnings.warn(printable(f"{folder} is damaged; going back to {older}"), stacklevel=4)
    raise AssertionError  # there is at least one folder


@words.door
def load_model(path: PathLike, *, step: int | None = None) -> keras.Model:
    """Rebuilds a Keras model from its stored config, with weights and optimizer in place.

    The config is read in Keras's safe mode: nothing in a checkpoint is run as code. Metrics start
    at zero. A state that optax trained gives an uncompiled model.

    Args:
        path: a checkpoint, a root folder of steps, or a ``.keras`` file.
        step: which step of a root folder; None for the newest.

    Returns:
        The model, compiled as it was; for a state of several models a dict of them.

    Raises:
        CheckpointError: if there is no checkpoint, or it holds no config that Keras can build.
        StructureMismatchError: if the rebuilt model has other variables than the checkpoint.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState, save
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> path = tempfile.mkdtemp() + "/one"
        >>> save(path, TrainState.from_keras(model))
        >>> type(load_model(path).optimizer).__name__
        'Adam'
    """
    return from_newest(candidates(path, step), _loaded)[0]


def _loaded(folder: FilePath) -> Any:
    if folder.is_file():
        return keras_files.load_model(folder)
    stored = orbax_io.Stored(folder)
    found: dict[str, Any] = stored.metadata if stored.ours else {"model": foreign.config(stored)}
    if not found.get("model"):
        raise CheckpointError(
            str(folder),
            got=f"no model config ({found.get('no_model', 'the state was not taken from a Keras model')})",
            expected="the config of a Keras model",
            fix="Build the model yourself and call restore(path, model), or save with model=.",
        )
    model = model_configs.build(found["model"], folder, stored.specs)
    return restore(folder, model, include=["params", "non_trainable", "opt_state"])


def candidates(path: Any, step: int | None) -> list[FilePath]:
    """The folders that hold what is asked for, the newest first: one, or all steps of a root.

    Raises:
        CheckpointNotFoundError: if there is none, or not that step.
        ArgumentError: for a step of what holds no steps.
    """
    folder = orbax_io.absolute(path)
    if keras_files.is_keras_file(folder):
        return [folder]
    if orbax_io.is_checkpoint(folder):
        named = step is None or (orbax_io.step_of(folder.name) == step)
        fix = "Leave step= out, or give the folder above it."
        require(named, str(folder), f"step={step} with the folder of one checkpoint", "a root folder", fix)
        return [folder]
    steps = orbax_io.steps_in(folder)
    if not steps:
        raise CheckpointNotFoundError(
            str(folder),
            got="no checkpoint",
            expected="a checkpoint or a root folder of steps",
            fix="Look at the path; a save in the background is there after manager.wait().",
        )
    if step is not None and step not in steps:
        raise CheckpointNotFoundError(
            str(folder),
            got=f"step={step}",
            expected=f"one of the steps {list(steps)}",
            fix="Leave step= out for the newest; max_to_keep= says how many stay.",
        )
    return [steps[found] for found in reversed(steps) if step in (None, found)]
