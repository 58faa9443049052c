"""Files of layers, such as vocabularies: what `save_assets` writes and `load_assets` reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from keras.src.saving import saving_lib

from keras_flax_bridge.errors import CheckpointError, UnsupportedLayerError, listing, said
from keras_flax_bridge.keras_internals.models import all_layers

Files = Mapping[str, bytes]  # contents by path, which was checked: relative, and without `..`


class _NoArrays(saving_lib.H5IOStore):
    """A stub in the place of a file of weights; before Keras 3.15 there has to be one."""

    def __init__(self) -> None:
        pass

    def __bool__(self) -> bool:  # so no layer writes or reads arrays
        return False

    def has_path(self, path: str) -> bool:
        return False


class _Raised(dict[int, Any]):
    """Raises the first error of a layer; Keras would try the layer again under its next name."""

    def __setitem__(self, key: int, value: Any) -> None:
        raise value[1]


class _Folder(saving_lib.DiskIOStore):
    """The folder in which Keras looks for the files of each layer; one that is not there is made, empty."""

    def __init__(self, folder: str):
        self.working_dir, self.asked = folder, list[str]()

    def make(self, path: str) -> str:
        self.asked.append(path)
        place = os.path.join(self.working_dir, path)
        os.makedirs(place, exist_ok=True)
        return place

    get = make

    def has_path(self, path: str) -> bool:
        return os.path.exists(os.path.join(self.working_dir, path))


def assets_of(model: Any) -> dict[str, bytes]:
    """The files that the layers of a model write, by the paths that Keras's own files give them.

    Raises:
        UnsupportedLayerError: if a layer writes something else than files, or keeps arrays that are in no
            variable.
        Exception: any error of a layer's `save_assets`.
    """
    if not has_assets(model):
        return {}
    _require_no_arrays(model)
    with tempfile.TemporaryDirectory() as folder:
        # `_save_state`: Keras's own walk; nothing public writes assets alone
        saving_lib._save_state(model, _NoArrays(), _Folder(folder), "", _passed_over(model))
        return dict(_contents(FilePath(folder)))


def has_assets(layer: Any) -> bool:
    """Whether a layer, or one below it, keeps state in files."""
    return any(hasattr(part, "save_assets") for part in all_layers(layer))


def load_assets(model: Any, files: Files, where: Any) -> None:
    """Lets the layers of a model read their files.

    Args:
        model: the model; its layers are changed.
        files: the files, by the paths of `assets_of`.
        where: the checkpoint, for errors.

    Raises:
        CheckpointError: if a layer can't read its files, or files are left for which there is no layer.
    """
    if not files and not has_assets(model):
        return
    with tempfile.TemporaryDirectory() as folder:
        for path, content in files.items():
            place = FilePath(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        store = _Folder(folder)
        try:
            # `_load_state`: the reverse walk
            saving_lib._load_state(
                model,
                _NoArrays(),
                store,
                "",
                visited_saveables=_passed_over(model),
                failed_saveables=set(),
                error_msgs=_Raised(),
            )
        except Exception as error:  # of a layer's `load_assets`, which may raise anything
            raise _unreadable(where, store.asked[-1] if store.asked else "", error) from error
    _require_all_read(files, store.asked, where)


def _passed_over(model: Any) -> set[int]:
    return {id(getattr(model, "optimizer", None))}


def _contents(folder: FilePath) -> Iterator[tuple[str, bytes]]:
    for here, _, names in os.walk(folder):
        for name in sorted(names):
            file = FilePath(here, name)
            if file.is_symlink() or not file.is_file():
                raise UnsupportedLayerError(
                    f"assets {file.relative_to(folder).as_posix()}",
                    got="a link, or something else that is no file",
                    expected="files that save_assets writes",
                    fix="Write the content itself in save_assets.",
                )
            yield file.relative_to(folder).as_posix(), file.read_bytes()


def _require_no_arrays(model: Any) -> None:
    """Checks that no layer with assets also writes arrays that are no variables, as tf-idf lookups do."""
    for layer in all_layers(model):
        if hasattr(layer, "save_assets") and not layer.variables:
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            if store:
                raise UnsupportedLayerError(
                    f"layer {layer.name!r}",
                    got=f"arrays that are in no variable ({', '.join(sorted(store))}), beside its assets",
                    expected="arrays in variables",
                    fix="Use another output_mode than tf_idf, or keep the layer in the data pipeline.",
                )


def _unreadable(where: Any, path: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(where),
        got=f"assets of {path or 'the model'} that the layer can't read "
        f"({type(error).__name__}: {said(error, 200)})",
        expected="the files that their save_assets wrote",
        fix="Save the checkpoint with the model whose layers have their files, or restore into such a model.",
    )


def _require_all_read(files: Files, asked: list[str], where: Any) -> None:
    left = [path for path in files if not any(_is_below(path, folder) for folder in {*asked})]
    if left:
        raise CheckpointError(
            str(where),
            got=listing("assets of no layer", left),
            expected="the layers that wrote them",
            fix="Build the model yourself, as it was, and call restore(path, model).",
        )


def _is_below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")
