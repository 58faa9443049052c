"""Opens a path of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint import guards, model_configs, orbax_io, presets
from keras_flax_bridge.checkpoint.locating import candidates, unknown
from keras_flax_bridge.checkpoint.readers.built_models import for_built
from keras_flax_bridge.checkpoint.readers.checkpoints import Checkpoint
from keras_flax_bridge.checkpoint.readers.composites import Composite
from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.checkpoint.readers.keras_files import in_keras_file, in_weights_file
from keras_flax_bridge.checkpoint.readers.loaded import LoadedModel
from keras_flax_bridge.checkpoint.readers.msgpack import Msgpack
from keras_flax_bridge.checkpoint.readers.npz import Npz
from keras_flax_bridge.checkpoint.readers.safetensors import Tensors
from keras_flax_bridge.errors import CheckpointError


def opened(path: Any, *, step: int | None = None, model: Any = None) -> Contents:
    """Opens a path; no values are read.

    Args:
        path: a checkpoint, a root folder of steps, a `.keras`, `.weights.h5`, `.safetensors` file, or a
            folder or an index of such.
        step: which step of a root folder; None for the newest.
        model: the Keras model of the leaves, if the path has no config; its variables are overwritten.

    Raises:
        CheckpointError: if there is nothing that can be read.
    """
    place = existing(path)
    if place.is_file():
        return _file(place, step, model)
    found = candidates(place, step)[0]
    if presets.is_preset(found):
        return LoadedModel(found, presets.loaded(found))
    return _file(found, None, model) if found.is_file() else _folder(found, model)


def restorable(path: FilePath, like: Any) -> Contents:
    """A checkpoint, a `.keras` file or a file of arrays, as `restore` reads it.

    Args:
        path: the folder of one checkpoint, or the file.
        like: the target of the restore.

    Raises:
        CheckpointError: if it can't be read.
    """
    if presets.is_preset(path):
        return LoadedModel(path, presets.loaded(path))
    if not path.is_file():
        return _folder(path, like)
    if guards.kind(path) in _ARRAYS:
        return _ARRAYS[guards.kind(path)](path)
    found = for_built(path, like)
    if found is not None and found.fits:
        return found
    try:
        return LoadedModel(path)
    except CheckpointError:
        if found is None:
            raise
        return found  # whose leaves differ from those of the target, which is told


def _folder(path: FilePath, like: Any) -> Contents:
    """A checkpoint of one tree, or of several if none is the usual one, or `like` names one by one."""
    items, usual = orbax_io.trees_in(path)
    if items and (not usual or like is dict or (isinstance(like, Mapping) and set(items) & set(like))):
        return Composite(path, items)
    return Checkpoint(orbax_io.Stored(path), like)


def existing(path: Any) -> FilePath:
    """Checks that a path exists, and returns it.

    Raises:
        CheckpointError: if nothing does.
    """
    place = orbax_io.absolute(path)
    if not place.exists():
        raise CheckpointError(
            str(place), got="nothing", expected="a file or a folder", fix="Look at the path once more."
        )
    return place


def _file(path: FilePath, step: int | None, model: Any) -> Contents:
    if step is not None:
        raise CheckpointError(
            str(path), got=f"step={step} with a file", expected="a root folder", fix="Leave the step out."
        )
    if path.name.endswith(".weights.h5"):
        return in_weights_file(path, model)
    if path.name.endswith(".keras"):
        return in_keras_file(path)
    if guards.kind(path) in _ARRAYS:
        return _ARRAYS[guards.kind(path)](path)
    raise unknown(path)


_ARRAYS: dict[str, Callable[[FilePath], Contents]] = {
    guards.TENSORS: Tensors,
    guards.INDEX: Tensors,
    guards.NPZ: Npz,
    guards.MSGPACK: Msgpack,
}


def model_for(contents: Contents) -> Any:
    """The model of the stored config; None if there is none."""
    config = contents.config
    return model_configs.build(config, contents.path, contents.specs) if config else None


def same_model(a: Contents, b: Contents) -> tuple[Contents, Contents]:
    """Names the leaves of both by structural key, if one has structural keys and its model is known."""
    if a.unnamed and not b.unnamed:
        return _named(a, b), b
    if b.unnamed and not a.unnamed:
        return a, _named(b, a)
    return a, b


def _named(contents: Contents, other: Contents) -> Contents:
    """`contents` with structural keys, from the model config of `other`."""
    model = model_for(other)
    if model is None:
        raise CheckpointError(
            str(contents.path),
            got=f"names that mean nothing elsewhere: {contents.unnamed}",
            expected="the model that it is of",
            fix="Give it with --model FILE.keras.",
        )
    return opened(contents.path, model=model)
