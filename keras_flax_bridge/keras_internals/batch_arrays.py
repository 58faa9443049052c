"""Leaves of a batch that other libraries made, as arrays that jax takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

# `data_adapter_utils`: what `fit` itself converts the leaves of a batch with, sparse matrices included
from keras.src.trainers.data_adapters import data_adapter_utils

_KNOWN = (jax.Array, np.generic, keras.Variable, keras.KerasTensor, jax.ShapeDtypeStruct)


def as_arrays(batch: Any) -> Any:
    """A batch with the tensors of TensorFlow, torch and others as arrays; the batch itself if it has none.

    Values are those that `fit` trains on. Arrays in the byte order of another machine become native ones.
    """
    leaves, tree = jax.tree.flatten(batch)
    arrays = [_array(leaf) for leaf in leaves]
    if all(array is leaf for array, leaf in zip(arrays, leaves, strict=True)):
        return batch
    return jax.tree.unflatten(tree, arrays)


def _array(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))
    if isinstance(leaf, _KNOWN):
        return leaf
    if hasattr(leaf, "detach"):  # torch: numpy takes no tensor that has a gradient or is on a GPU
        leaf = leaf.detach().cpu()
    for name, read in _WAYS.items():
        if hasattr(leaf, name):
            try:
                return read(leaf)
            except (TypeError, RuntimeError, BufferError):  # numpy lacks some dtypes
                continue
    return leaf


def _as_fit_does(leaf: Any) -> Any:
    return next(data_adapter_utils.get_jax_iterator([leaf]))


_WAYS: dict[str, Callable[[Any], Any]] = {  # by what the leaf has; the first that succeeds
    "__array__": _as_fit_does,
    "tocoo": _as_fit_does,
    "dense_shape": _as_fit_does,
    "__dlpack__": jax.dlpack.from_dlpack,
    "numpy": lambda leaf: np.asarray(leaf.numpy()),
}
