"""Compares the outputs of a Keras model and its conversion on a random input."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedLayerError

BATCH, LENGTH = 2, 8  # sizes of the batch axis and of other axes without a fixed size
ROUNDING = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def random_input(model: Any, graph: Any, rng: np.random.Generator) -> Any:
    """A random batch with the input shapes and dtypes of a model.

    Integers are valid indices for all embeddings of the model.
    """
    inputs, _ = keras_internals.structure(graph)
    sizes = [
        layer.input_dim
        for layer in keras_internals.all_layers(model)
        if isinstance(layer, keras.layers.Embedding)
    ]
    most = min(sizes, default=2)
    inputs = inputs[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else inputs
    if (
        sizes and keras_internals.functional(model) is None
    ):  # the traced inputs of a subclassed model are floats, even if they are indices
        return keras.tree.map_structure(lambda tensor: _ids(tensor, most, rng), inputs)
    return keras.tree.map_structure(lambda tensor: _random(tensor, most, rng), inputs)


def _ids(tensor: Any, most: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, most, (BATCH, *(size or LENGTH for size in tensor.shape[1:]))).astype("int32")


def _random(tensor: Any, most: int, rng: np.random.Generator) -> np.ndarray:
    batch, *rest = tensor.shape
    shape = (batch or BATCH, *(LENGTH if size is None else size for size in rest))
    dtype = str(tensor.dtype)
    if "float" in dtype:
        return rng.standard_normal(shape).astype("float64" if dtype == "float64" else "float32")
    if dtype == "bool":
        return rng.random(shape) > 0.5
    return rng.integers(0, most, shape).astype(dtype)


def difference(got: Any, wanted: Any) -> float:
    """The largest absolute difference between two structures, relative to the largest value of the second."""
    pairs = zip(keras.tree.flatten(got), keras.tree.flatten(wanted), strict=True)
    return max((_difference(np.asarray(a), np.asarray(b)) for a, b in pairs), default=0.0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype("float64"), b.astype("float64")
    same = np.array_equal(np.isnan(a), np.isnan(b))
    if not same:
        return float("inf")
    scale = np.nanmax(np.abs(b), initial=0.0) or 1.0
    return float(np.nanmax(np.abs(a - b), initial=0.0) / scale)


def tolerance_of(model: Any) -> float:
    """The tolerance for rounding, from the least precise compute dtype of the model."""
    kinds = {part.compute_dtype for part in keras_internals.all_layers(model)} | {model.compute_dtype}
    return max(ROUNDING.get(kind, 0.0) for kind in kinds)


def check(model: Any, module: Any, graph: Any) -> float:
    """The relative difference of the outputs in inference mode.

    Raises:
        UnsupportedLayerError: if it exceeds the tolerance.
    """
    x = random_input(model, graph, np.random.default_rng(0))
    measured = difference(module(x), model(x, training=False))
    if not measured <= tolerance_of(model):
        raise UnsupportedLayerError(
            f"model {model.name!r}",
            got=f"a conversion whose outputs differ by {measured:.1e}, relative to the largest",
            expected=f"at most {tolerance_of(model):.1e}",
            fix="Find the first layer that differs with kfb.migrate.compare(model, "
            "kfb.migrate.to_nnx(model, check_outputs=False), x, layers=True).",
        )
    return measured
