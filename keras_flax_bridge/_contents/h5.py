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
from keras_flax_bridge._contents.base import unreadable
from keras_flax_bridge.state import TrainState

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # the items of a `.keras` file


@contextlib.contextmanager
def _explained(path: FilePath) -> Iterator[None]:
    """Says that Keras did not write a file, or that it is damaged.

    Raises:
        CheckpointError: if it can't be read.
    """
    try:
        yield
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise unreadable(path, error, "a file that Keras wrote", "Is it whole, and of Keras 3?") from error


def _item(path: FilePath, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


@contextlib.contextmanager
def _weights(path: FilePath) -> Iterator[h5py.File]:
    """The weights in a file; each use of a `.keras` file reads all of them."""
    with _explained(path):
        # on Python 3.13 HDF5 can't seek in a member of a zip
        file = path if path.name.endswith(".h5") else io.BytesIO(_item(path, _WEIGHTS))
        with h5py.File(file) as weights:
            yield weights


def config(path: FilePath) -> dict[str, Any] | None:
    """The config of the model in a `.keras` file; None for a file of weights alone."""
    if path.name.endswith(".h5"):
        return None
    with _explained(path):
        return json.loads(_item(path, _CONFIG))


def datasets(path: FilePath) -> dict[_paths.Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays in a file, by Keras's own paths in it."""
    with _weights(path) as weights:
        return _datasets(weights)


def _datasets(weights: h5py.File) -> dict[_paths.Path, jax.ShapeDtypeStruct]:
    found: dict[_paths.Path, jax.ShapeDtypeStruct] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[tuple(name.split("/"))] = jax.ShapeDtypeStruct(item.shape, _dtype(item))

    weights.visititems(visit)
    return dict(
        sorted(found.items(), key=lambda item: [(len(n), n) if n.isdigit() else (0, n) for n in item[0]])
    )


def _dtype(item: Any) -> Any:
    """The dtype of an array; Keras writes those that HDF5 doesn't know as bytes, with the name beside."""
    return item.attrs.get("dtype", item.dtype)


def values(path: FilePath) -> _paths.Flat:
    """The arrays in a file, by Keras's own paths in it."""
    with _weights(path) as weights:
        return {p: _value(weights["/".join(p)]) for p in _datasets(weights)}


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
