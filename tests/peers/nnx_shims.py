"""`ToNNX` with the arguments and attribute names of Flax's layers, in their place in `flax.nnx`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import keras
from flax import nnx

import keras_flax_bridge as kfb


class Linear(kfb.ToNNX):
    """`keras.layers.Dense`, which takes inputs with a batch axis only, for `nnx.Linear`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **variables: Any,
    ):
        policy = keras.DTypePolicy(jnp.dtype(param_dtype if dtype is None else dtype).name)
        dense = keras.layers.Dense(out_features, use_bias=use_bias, dtype=policy)
        super().__init__(dense, rngs=rngs, shape=(None, in_features))
        self.in_features, self.out_features = in_features, out_features
        filled(self, rngs, variables)

    def __call__(self, x: Any) -> Any:
        return super().__call__(x) if x.ndim > 1 else super().__call__(x[None])[0]


class Conv(kfb.ToNNX):
    """`keras.layers.Conv2D` for an `nnx.Conv` of images."""

    def __init__(self, in_features: int, out_features: int, kernel_size: Any, *, rngs: nnx.Rngs):
        conv = keras.layers.Conv2D(out_features, kernel_size, padding="same")
        super().__init__(conv, rngs=rngs, shape=(None, None, None, in_features))


class BatchNorm(kfb.ToNNX):
    """`keras.layers.BatchNormalization` for `nnx.BatchNorm`."""

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool = False,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        layer = keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon)
        super().__init__(layer, rngs=rngs, shape=(None, num_features))
        self.use_running_average = use_running_average

    scale = property(lambda self: self.gamma)
    bias = property(lambda self: self.beta)
    mean = property(lambda self: self.moving_mean)
    var = property(lambda self: self.moving_variance)

    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        return super().__call__(x, training=None if use_running_average is None else not use_running_average)


class Dropout(kfb.ToNNX):
    """`keras.layers.Dropout` for `nnx.Dropout`."""

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Any = (),
        deterministic: bool = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ):
        if broadcast_dims or rng_collection != "dropout":
            raise TypeError("no place for broadcast_dims and rng_collection")
        keys = nnx.Rngs(params=rngs(), dropout=rngs()) if isinstance(rngs, nnx.RngStream) else rngs
        super().__init__(keras.layers.Dropout(rate), rngs=keys, shape=(None, 1))
        self.rate, self.deterministic = rate, deterministic

    rngs = property(lambda self: self.seed_generator_state)

    def __call__(self, x: Any, *, deterministic: bool | None = None, rngs: Any = None) -> Any:
        if rngs is not None:
            nnx.reseed(self, dropout=rngs() if isinstance(rngs, nnx.RngStream) else rngs.dropout())
        return super().__call__(x, training=None if deterministic is None else not deterministic)


def filled(module: Any, rngs: nnx.Rngs, variables: dict[str, Any]) -> None:
    """Gives weights the values and the metadata that Flax's arguments ask for."""
    for argument, given in variables.items():
        name, _, what = argument.rpartition("_")
        weight = getattr(module, name)
        if what == "init":
            value = given(rngs.params(), weight.shape, weight.dtype)
            setattr(module, name, nnx.Param(value, **weight.get_metadata()))
        elif what == "metadata":
            weight.set_metadata(**given)
        else:
            raise TypeError(f"no place for {argument}")


SHIMS = {"Linear": Linear, "Conv": Conv, "BatchNorm": BatchNorm, "Dropout": Dropout}


def install() -> None:
    """Puts the wrappers in the place of Flax's layers."""
    for name, shim in SHIMS.items():
        setattr(nnx, name, shim)
