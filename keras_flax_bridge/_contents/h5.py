"""The arrays in Keras's own files, and the config beside them, without loading the model."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import h5py
import jax

from keras_flax_bridge import _configs, _paths
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.state import TrainState

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # the items of a `.keras` file


@contextlib.contextmanager
def _opened(path: FilePath) -> Iterator[tuple[h5py.File, dict[str, Any] | None]]:
    """The weights in a file, and the config of the model where there is one.

    Raises:
        CheckpointError: if Keras did not write it, or it is damaged.
    """
    try:
        if path.name.endswith(".h5"):
            with h5py.File(path) as weights:
                yield weights, None
        else:
            with zipfile.ZipFile(path) as archive:  # HDF5 can't seek in a member of it on Python 3.13
                file, found = io.BytesIO(archive.read(_WEIGHTS)), json.loads(archive.read(_CONFIG))
            with h5py.File(file) as weights:
                yield weights, found
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            str(path),
            got=f"{type(error).__name__}: {str(error)[:300]}",
            expected="a file that Keras wrote",
            fix="Is it whole, and of Keras 3?",
        ) from error


def config(path: FilePath) -> dict[str, Any] | None:
    """The config of the model in a `.keras` file; None for a file of weights alone."""
    with _opened(path) as (_, found):
        return found


def datasets(path: FilePath) -> dict[_paths.Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays in a file, by Keras's own paths in it."""
    found: dict[_paths.Path, jax.ShapeDtypeStruct] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[tuple(name.split("/"))] = jax.ShapeDtypeStruct(item.shape, _dtype(item))

    with _opened(path) as (weights, _):
        weights.visititems(visit)
    return dict(
        sorted(found.items(), key=lambda item: [(len(n), n) if n.isdigit() else (0, n) for n in item[0]])
    )


def _dtype(item: Any) -> Any:
    """The dtype of an array; Keras writes those that HDF5 doesn't know as bytes, with the name beside."""
    return item.attrs.get("dtype", item.dtype)


def values(path: FilePath) -> _paths.Flat:
    """The arrays in a file, by Keras's own paths in it."""
    with _opened(path) as (weights, _):
        return {p: _value(weights["/".join(p)]) for p in datasets(path)}


def _value(item: Any) -> Any:
    found = item[()]
    return found.view(_dtype(item)) if "dtype" in item.attrs else found


def specs(path: FilePath) -> _paths.Flat:
    """Shapes and dtypes of all that a `.keras` file may hold, by structural key; nothing is allocated.

    Raises:
        BridgeError: if the model can't be built here.
    """
    found = config(path)
    optimizer = None if found and found.get("compile_config") else "sgd"
    return _paths.flatten(TrainState.abstract(lambda: _configs.build(found or {}, path), optimizer=optimizer))
