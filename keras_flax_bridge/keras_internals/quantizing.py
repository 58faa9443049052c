"""Quantizing layers whose weights have no values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras
import numpy as np
from keras.src import quantizers
from keras.src.quantizers import quantizers as functions

from keras_flax_bridge.keras_internals.bounds import PATCHING

# Keras computes these in numpy, which takes no array without a value
_IN_NUMPY = ("abs_max_quantize", "abs_max_quantize_grouped_with_zero_point", "pack_int4")
Unknown = Callable[[Any, Any], Any]


@contextlib.contextmanager
def quantizing_without_values(unknown: Unknown) -> Iterator[None]:
    """Context in which Keras quantizes weights without values: the results have shapes and dtypes alone.

    Args:
        unknown: an array without a value, of a shape and a dtype.
    """
    with PATCHING, contextlib.ExitStack() as before:
        for module in (quantizers, functions):  # layers take them from the one, quantizers from the other
            for name in _IN_NUMPY:
                if hasattr(module, name):  # the second came with Keras 3.14
                    plain = getattr(module, name)
                    before.callback(setattr, module, name, plain)
                    setattr(module, name, _instead(plain, unknown))
        yield


def _instead(plain: Callable[..., Any], unknown: Unknown) -> Callable[..., Any]:
    def quantize(inputs: Any, *args: Any, **options: Any) -> Any:
        value = inputs.value if isinstance(inputs, keras.Variable) else inputs
        if not isinstance(value, jax.core.Tracer):
            return plain(inputs, *args, **options)
        zeros = np.broadcast_to(np.zeros((), value.dtype), value.shape)  # one number, whatever the shape
        found = plain(zeros, *args, **options)
        arrays = (np.ndarray, jax.Array)
        return jax.tree.map(lambda x: unknown(x.shape, x.dtype) if isinstance(x, arrays) else x, found)

    return quantize
