"""Reads a checkpoint, or a file of Keras, into whatever is given.

The stations of a restore: open, align the optimizer's side, target, plan, load, verify, finish.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import foreign, keras_files, model_configs, optimizer_sides, orbax_io
from keras_flax_bridge.checkpoint.leaf_kinds import given_back
from keras_flax_bridge.checkpoint.locating import candidates, from_newest
from keras_flax_bridge.checkpoint.matching import placement, plan
from keras_flax_bridge.checkpoint.optimizer_sides import Aligned
from keras_flax_bridge.checkpoint.options import Include, Rename, RestoreOptions
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.checkpoint.readers import Checkpoint, Contents, restorable
from keras_flax_bridge.checkpoint.targets import Target, target_of
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.state import gc_pause, trees
from keras_flax_bridge.state.trees import METRIC, WEIGHTS
from keras_flax_bridge.tree import types, words
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.types import PathLike


@words.door
def restore(
    path: PathLike,
    like: types.Target,
    *,
    step: int | None = None,
    data: Any = None,
    include: Include = None,
    rename: Rename = None,
    partial: bool = False,
    verify: bool = True,
    cast: bool = False,
) -> types.Target:
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
    options = RestoreOptions(include, rename, partial, verify, cast, data)
    found = from_newest(candidates(path, step), lambda folder: restored(folder, like, options))
    filled: types.Target = found[0]
    return filled


@gc_pause.gc_paused()
def restored(folder: FilePath, like: Any, options: RestoreOptions) -> Any:
    """One checkpoint into what `like` is."""
    if folder.name.endswith(".weights.h5"):
        return keras_files.restore_weights(folder, like)
    return filled(restorable(folder, like), like, options)


def filled(source: Contents, like: Any, options: RestoreOptions) -> Any:
    """Restores `source` into `like`: plans, reads and checks before anything is assigned."""
    like, finish = optimizer_sides.align(like, source.specs) if options.takes_all else Aligned(like)
    target = _target(like, source, options)
    names = _planned(source, target, options)
    values = source.load({n: placement(source.specs[n], target.wanted[path]) for path, n in names.items()})
    if options.verify:
        source.require_whole(values)
    if options.data is not None:
        source.load_data(options.data)
    return finish(
        target.put({path: given_back(values[n], target.wanted[path], path) for path, n in names.items()})
    )


def _target(like: Any, source: Contents, options: RestoreOptions) -> Target:
    """The target of a restore, for the leaf names of the checkpoint."""
    tops = {name[0] for name in source.specs}
    target = target_of(like, tops=tops, weights=options.weight_map)
    if options.rename is not None or not isinstance(like, nnx.Module):
        return target
    stored = {*source.specs, *target.optional}
    if hasattr(type(like), "weight_map"):  # it wants variables of Keras, from either tree of weights
        stored |= {("params", *name[1:]) for name in stored if name[0] in WEIGHTS}
    if target.wanted.keys() <= stored:
        return target
    from keras_flax_bridge.checkpoint.native_modules import map_for  # on first use: its tables take a while

    weights = map_for(like, source.metadata, source.path, source.specs)
    return target if weights is None else target_of(like, tops=tops, weights=weights)


def _planned(source: Contents, target: Target, options: RestoreOptions) -> dict[Path, Path]:
    """The name in the checkpoint of every leaf that is wanted and found."""
    own = foreign.weight_names(source.specs) if target.of_weights else {name: name for name in source.specs}
    specs = {name: source.specs[place] for name, place in own.items()}
    options = options if options.weight_map is None else replace(options, rename=None)
    found = plan(specs, target, f"checkpoint {source.path}", options)
    return {path: own[name] for path, name in found.items()}


def stored_position(path: Any) -> Any:
    """The position of the data iterator in the newest readable checkpoint, or None."""
    read = from_newest(candidates(path, None), lambda folder: orbax_io.Stored(folder).metadata.data)
    return (read[0] or {}).get("json")


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
    stored.require_stored()
    config = stored.metadata.model if stored.ours else foreign.config(stored)
    if not config:
        why = stored.metadata.no_model or "the state was not taken from a Keras model"
        raise CheckpointError(
            str(folder),
            got=f"no model config ({why})",
            expected="the config of a Keras model",
            fix="Build the model yourself and call restore(path, model), or save with model=.",
        )
    options = RestoreOptions(include=trees.names(lambda tree: tree.variables and tree.kind != METRIC))

    def fill(model: Any) -> None:
        with gc_pause.gc_paused():
            filled(Checkpoint(stored, model), model, options)

    return keras_internals.filled(lambda: model_configs.build(config, folder, stored.specs), fill)
