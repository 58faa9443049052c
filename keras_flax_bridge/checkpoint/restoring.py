"""Reads a checkpoint, or a file of Keras, into whatever is given.

The stations of a restore: open, align the optimizer's side, target, plan, load, verify, finish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jax
import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import (
    assets,
    foreign,
    forms,
    keras_files,
    model_configs,
    optimizer_sides,
    orbax_io,
    own_names,
    presets,
)
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.leaf_kinds import given_back
from keras_flax_bridge.checkpoint.locating import candidates, from_newest
from keras_flax_bridge.checkpoint.matching import placement, plan, selected
from keras_flax_bridge.checkpoint.optimizer_sides import Aligned
from keras_flax_bridge.checkpoint.options import Include, Rename, RestoreOptions
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.checkpoint.readers import Checkpoint, Contents, Dict, restorable
from keras_flax_bridge.checkpoint.targets import Target, target_of
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.state import gc_pause, trees
from keras_flax_bridge.state.trees import METRIC, WEIGHTS
from keras_flax_bridge.tree import types, words
from keras_flax_bridge.tree.leaves import KeyData
from keras_flax_bridge.tree.paths import Path, nest_paths
from keras_flax_bridge.tree.types import PathLike


@words.door
def restore(
    path: PathLike | Mapping[str, Any],
    like: types.Target,
    *,
    step: int | None = None,
    data: Any = None,
    include: Include = None,
    rename: Rename = None,
    partial: bool = False,
    keys: str | None = None,
    verify: bool = True,
    cast: bool = False,
) -> types.Target:
    """Restores a checkpoint into what `like` is; every leaf on both sides is accounted for.

    Args:
        path: a checkpoint or a root folder of steps, of this package or of other code that uses Orbax,
            Keras's `OrbaxCheckpoint` among it; a file of Keras's: ``.keras`` into anything,
            ``.weights.h5`` into the built model it was saved from; ``.safetensors``, a folder of such
            with their ``.safetensors.index.json``, ``.npz``, a msgpack file of Flax; a preset folder of
            KerasHub: into a task or a backbone, whose weights and tokenizers' files it fills, or into
            anything; or a dict of arrays.
        like: what comes back. A `TrainState`, concrete or abstract, with shardings: a state; where the
            checkpoint has the same optimizer on Keras's side and the state on optax's, or the reverse,
            as `TrainState.to_optax` makes it, it is converted. A
            `keras.Model`, or a dict of models: filled in place and returned, optimizer and metrics
            too where it is compiled, but for metrics that saw no data yet; so are layers with files, such
            as tokenizers, whose files differ from those that are stored. An `nnx.Module`: updated
            in place and returned, as are NNX optimizers, metrics and `Rngs`, alone and in dicts, lists,
            tuples and dataclasses. `nnx.State`, Linen variables, a Flax `TrainState` or any other
            pytree: a new one of the same structure. ``dict``, the class itself: nested dicts of what is
            stored, or of what `include` selects.
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
        keys: ``"path"`` for names that are Keras's `variable.path`, nested or with slashes, as Keras's own
            scripts write them; automatic names of another process are found by their order. `like` is then
            a Keras model, or what was taken from one. Seeds, metrics and slots stay as they are where
            nothing of their kind is stored.

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
    options = RestoreOptions(include, rename, partial, verify, cast, data, keys)
    result: types.Target
    if isinstance(path, Mapping):
        fix = "Leave step= out: a dict holds one state."
        require(step is None, "step", f"step={step} with a dict", "a root folder", fix)
        with gc_pause.gc_paused():
            result = filled(Dict(path), like, options)
    else:
        found = from_newest(candidates(path, step), lambda folder: restored(folder, like, options))
        result = found[0]
    return result


@gc_pause.gc_paused()
def restored(folder: FilePath, like: Any, options: RestoreOptions) -> Any:
    """One checkpoint into what `like` is."""
    if folder.name.endswith(".weights.h5"):
        return keras_files.restore_weights(folder, like)
    if isinstance(like, keras.Model) and presets.is_preset(folder):
        _require_whole(folder, options)
        return presets.restore(folder, like, partial=options.partial)
    return filled(restorable(folder, like), like, options)


def _require_whole(folder: FilePath, options: RestoreOptions) -> None:
    given = options.include is not None or options.rename is not None or options.data is not None
    fix = "Leave them out, or take the model with load_model(folder)."
    got = "include=, rename= or data= with a preset and a model"
    require(not given, str(folder), got, "none of them", fix)


def filled(source: Contents, like: Any, options: RestoreOptions) -> Any:
    """Restores `source` into `like`: plans, reads and checks before anything is assigned."""
    names_of_others = source.own_names or options.keys is not None
    if names_of_others:
        source, options = own_names.named(source, like, options)
    if like is dict:
        source.require_stored()
        chosen = selected(source.specs, f"checkpoint {source.path}", options)
        like = nest_paths({path: _abstract(leaf) for path, leaf in chosen.items()})
    like, finish = optimizer_sides.align(like, source.specs) if options.takes_all else Aligned(like)
    target = _target(like, source, options)
    if names_of_others:
        source, target = own_names.completed(source, target, like, options)
    names = _planned(source, target, options)
    values = source.load({n: placement(source.specs[n], target.wanted[path]) for path, n in names.items()})
    if options.verify:
        source.require_whole(values)
    if options.data is not None:
        source.load_data(options.data)
    has_models = isinstance(like, (keras.Model, Mapping)) and options.takes_all
    if has_models and (holders := assets.holders(like)):
        assets.fill(holders, source.assets(), source.path)
    return finish(
        target.put({path: given_back(values[n], target.wanted[path], path) for path, n in names.items()})
    )


def _abstract(leaf: Any) -> Any:
    """A stored leaf as a leaf of a target: what Orbax describes arrays with is a tree for JAX."""
    is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, KeyData)
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype) if is_array else leaf


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
    whole = not target.of_weights or options.keys is not None  # whether names begin with that of a tree
    own = {name: name for name in source.specs} if whole else foreign.weight_names(source.specs)
    if (
        not options.keys and target.leaves and not target.wanted.keys() <= own.keys()
    ):  # others write NNX objects in other forms
        own, target = forms.named_as_stored(own, source.specs, target)
    specs = {name: source.specs[place] for name, place in own.items()}
    options = options if options.weight_map is None else replace(options, rename=None)
    found = plan(specs, target, f"checkpoint {source.path}", options)
    return {path: own[name] for path, name in found.items()}


def stored_positions(root: FilePath) -> Iterator[tuple[int, Any]]:
    """The positions of the data iterator by step, from the newest, without those that can't be read."""
    for step, folder in reversed(orbax_io.steps_in(root).items()):
        with suppress(CorruptCheckpointError):
            yield step, (orbax_io.Stored(folder).metadata.data or {}).get("json")


@words.door
def load_model(path: PathLike, *, step: int | None = None) -> keras.Model:
    """Rebuilds a Keras model from its stored config, with weights and optimizer in place.

    The config is read in Keras's safe mode: nothing in a checkpoint is run as code. Metrics start
    at zero. A state that optax trained gives an uncompiled model.

    Args:
        path: a checkpoint, a root folder of steps, a ``.keras`` file, or a preset folder of KerasHub, which
            gives the task, or the backbone where there is none.
        step: which step of a root folder; None for the newest.

    Returns:
        The model, compiled as it was, with the files of its layers, such as vocabularies; for a state of
        several models a dict of them.

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
    if presets.is_preset(folder):
        return presets.load_model(folder)
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

    files = orbax_io.assets(stored)

    def fill(model: Any) -> None:
        assets.load(model, files, folder)
        with gc_pause.gc_paused():
            filled(Checkpoint(stored, model), model, options)

    return keras_internals.filled(lambda: model_configs.build(config, folder, stored.specs), fill)
