"""Preset folders of KerasHub: configs, weights and the files of tokenizers, as `save_to_preset` writes them.

The folder is read with Keras's own functions after everything in it was checked; KerasHub's loader, which
takes any path and knows no safe mode, is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import assets, guards, keras_files, model_configs
from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.errors import CheckpointError, StructureMismatchError, said
from keras_flax_bridge.keras_internals import SLACK
from keras_flax_bridge.tree.untrusted import texts

CONFIG, TASK = "config.json", "task.json"  # of the backbone, and of the task around it
WEIGHTS, TASK_WEIGHTS = "model.weights.h5", "task.weights.h5"
SHARDS = "model.weights.json"  # in the place of `WEIGHTS`, where the backbone is large
_ASSETS = "assets"  # the folder of what tokenizers read
_SHARD = re.compile(r"model_[0-9]{5}\.weights\.h5")
_FILES = re.compile(r"[A-Za-z0-9_-]{1,100}\.json")  # the config of a tokenizer; its folder has its name
_FIX = "Let KerasHub write the folder: model.save_to_preset(folder)."


def is_preset(path: FilePath) -> bool:
    """Whether a folder is a preset of KerasHub."""
    return (path / CONFIG).is_file() and any((path / n).is_file() for n in (TASK, WEIGHTS, SHARDS))


def load_model(folder: FilePath) -> Any:
    """The task in a preset folder, compiled as KerasHub compiles a new one; the backbone if there is no task.

    Raises:
        CheckpointError: if the folder is not as KerasHub writes it, or its model can't be built.
    """
    model = loaded(folder)
    if keras_internals.has_own_compile(model):
        model.compile()  # as the constructor of a task does: a preset doesn't say how it was
    return model


def loaded(folder: FilePath) -> Any:
    """The same, not compiled."""
    files = _weights(folder)
    config = _json(folder, TASK if (folder / TASK).is_file() else CONFIG)
    most = SLACK + sum(file.stat().st_size for file in files)  # each number takes at least one byte

    def build() -> Any:
        with keras_internals.bounded(most, str(folder)):
            return model_configs.build(config, folder)

    def fill(model: Any) -> None:
        _load_assets(folder, model)
        _load_weights(folder, model)

    return keras_internals.filled(build, fill)


def restore(folder: FilePath, model: Any, *, partial: bool) -> Any:
    """The weights of a preset folder, and the files of its tokenizers, into a model, all or nothing.

    Args:
        folder: the folder.
        model: a task or a backbone, built; its optimizer and its seeds stay as they are.
        partial: whether a folder of the backbone alone serves a task.

    Raises:
        StructureMismatchError: if the model isn't built, or is a task whose own weights are not stored.
        CheckpointError: if the folder is not as KerasHub writes it, or is of another model.
    """
    _weights(folder)
    _require_built(folder, model)
    has_head = model is not _backbone(model) and model.has_task_weights()
    if has_head and not (folder / TASK_WEIGHTS).is_file() and not partial:
        raise StructureMismatchError(
            str(folder),
            got="the weights of a backbone alone",
            expected=f"those of {type(model).__name__} too",
            fix="Pass partial=True to leave the other weights as they are, or restore into model.backbone.",
        )
    with keras_files.all_or_nothing(model, model.variables), assets.kept(model, folder):
        _load_weights(folder, model)
        if (folder / _ASSETS).is_dir():  # else the model keeps its own, as with any checkpoint
            _load_assets(folder, model)
    return model


def weight_files(folder: FilePath) -> list[FilePath]:
    """The files with the arrays of a preset.

    Raises:
        CheckpointError: if one is missing, or the list of them names another file.
    """
    names = [n for n in (TASK_WEIGHTS, WEIGHTS) if (folder / n).is_file()]
    if WEIGHTS not in names:
        names += _shards(folder)
    return [folder / name for name in names]


def _shards(folder: FilePath) -> list[str]:
    found = _json(folder, SHARDS).get("weight_map")
    listed = [n for names in (found or {}).values() for n in (names if isinstance(names, list) else [names])]
    odd = [n for n in listed if not (isinstance(n, str) and _SHARD.fullmatch(n) and (folder / n).is_file())]
    if odd or not listed:
        raise CheckpointError(
            f"{folder / SHARDS}",
            got=f"a file of the name {texts.clipped(odd[0], 200)}" if odd else "no files",
            expected="files model_00000.weights.h5 and so on beside it",
            fix=_FIX,
        )
    return sorted({*listed})


def _weights(folder: FilePath) -> list[FilePath]:
    """The files with arrays, after checking every file of the folder."""
    texts.require_files(folder)
    found = weight_files(folder)
    for file in found:
        guards.require_loadable(file)
    return found


def _json(folder: FilePath, name: str) -> dict[str, Any]:
    where = str(folder / name)
    text = texts.read_text(folder / name, CheckpointError)
    found = texts.parsed(text, where, CheckpointError, limits.CONFIG_BOUNDS)
    if isinstance(found, dict):
        return found
    raise CheckpointError(where, got="JSON of another kind", expected="a JSON object", fix=_FIX)


def _backbone(model: Any) -> Any:
    """The model that the file of the backbone is of."""
    own = getattr(model, "backbone", None)
    return own if isinstance(own, keras.Model) and hasattr(model, "load_task_weights") else model


def _load_weights(folder: FilePath, model: Any) -> None:
    backbone, task = _backbone(model), folder / TASK_WEIGHTS
    # a task's file has the optimizer with which it was saved, which is of no use without its slots
    optimizers = [getattr(one, "optimizer", None) for one in (model, backbone)]
    with _speaking(folder):
        if backbone is not model and task.is_file():
            others = [*keras_internals.all_layers(backbone), *optimizers]
            keras.saving.load_weights(model, task, objects_to_skip=others)
        single = folder / WEIGHTS
        file = single if single.is_file() else folder / SHARDS
        keras.saving.load_weights(backbone, file, objects_to_skip=optimizers)


def _load_assets(folder: FilePath, model: Any) -> None:
    """Lets every tokenizer read its files, which lie in a folder of the name of its config."""
    for layer in keras_internals.all_layers(model):
        if not hasattr(layer, "load_assets"):
            continue
        name = getattr(layer, "config_file", None)
        if not isinstance(name, str) or not _FILES.fullmatch(name):
            raise CheckpointError(
                str(folder),
                got=f"a {type(layer).__name__} whose files lie in {texts.clipped(name, 100)}",
                expected="a tokenizer with config_file, such as 'tokenizer.json'",
                fix=_FIX,
            )
        files = folder / _ASSETS / name.removesuffix(".json")
        size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
        if size > limits.ASSETS:
            got = f"{size:,} bytes"
            raise CheckpointError(str(files), got=got, expected=f"at most {limits.ASSETS:,}", fix=_FIX)
        with _speaking(folder):
            layer.load_assets(str(files))


@contextmanager
def _speaking(folder: FilePath) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Keras and KerasHub raise many kinds
        raise CheckpointError(
            str(folder),
            got=f"a preset that can't be read ({type(error).__name__}: {said(error, 500)})",
            expected="the weights and the files of this model",
            fix="Restore into a model of the architecture that was saved. " + _FIX,
        ) from error


def _require_built(folder: FilePath, model: Any) -> None:
    if not model.built:
        raise StructureMismatchError(
            str(folder),
            got=f"an unbuilt {type(model).__name__}",
            expected="a built keras.Model",
            fix="Call it once, or take kfb.load_model(folder).",
        )
