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
    kernel_init: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        policy = keras.DTypePolicy(jnp.dtype(self.param_dtype).name)
        dense = keras.layers.Dense(int(self.features), use_bias=self.use_bias, dtype=policy)
        wrapped = kfb.ToLinen(dense)
        nn.share_scope(self, wrapped)
        x = jnp.asarray(x)
        rows = x if x.ndim > 1 else x[None]
        if self.kernel_init is not None and self.is_initializing():
            wrapped(rows)
            shape, key = self.get_variable("params", "kernel").shape, self.make_rng("params")
            self.put_variable("params", "kernel", self.kernel_init(key, shape, self.param_dtype))
        outputs = wrapped(rows)
        return outputs if x.ndim > 1 else outputs[0]


def install() -> None:
    """Puts the wrapper in the place of Flax's layer."""
    nn.Dense = Dense  # type: ignore[misc, assignment]
