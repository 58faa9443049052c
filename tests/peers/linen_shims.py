"""`ToLinen` with the arguments of Flax's layers, in their place in `flax.linen`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import keras
from flax import linen as nn

import keras_flax_bridge as kfb


class Dense(nn.Module):
    """`keras.layers.Dense`, which takes inputs with a batch axis only, for `nn.Dense`."""

    features: int
    use_bias: bool = True
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any) -> Any:
        policy = keras.DTypePolicy(jnp.dtype(self.param_dtype).name)
        wrapped = kfb.ToLinen(keras.layers.Dense(self.features, use_bias=self.use_bias, dtype=policy))
        nn.share_scope(self, wrapped)
        x = jnp.asarray(x)
        return wrapped(x) if x.ndim > 1 else wrapped(x[None])[0]


def install() -> None:
    """Puts the wrapper in the place of Flax's layer."""
    nn.Dense = Dense  # type: ignore[misc, assignment]
