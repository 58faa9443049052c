"""First values of weights, where it does not matter which."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from keras import initializers


@contextmanager
def drawn_by_numpy() -> Iterator[None]:
    """Inside, numpy draws the weights: Keras compiles a program for each shape, ten times as slow."""

    def normal(self: Any, shape: Any, dtype: Any = None) -> Any:
        scale = np.prod(shape[:-1], initial=1) ** -0.5
        return (scale * np.random.standard_normal(shape)).astype(jnp.dtype(dtype or "float32"))

    makers = {
        initializers.VarianceScaling: normal,
        initializers.RandomNormal: normal,
        initializers.TruncatedNormal: normal,
        initializers.Zeros: lambda self, shape, dtype=None: np.zeros(shape, jnp.dtype(dtype or "float32")),
        initializers.Ones: lambda self, shape, dtype=None: np.ones(shape, jnp.dtype(dtype or "float32")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for initializer, make in makers.items():
            patch.setattr(initializer, "__call__", make)
        yield
