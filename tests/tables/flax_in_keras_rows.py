"""Flax modules that go through the checks of `tests/interop/test_flax_in_keras.py`: one entry adds one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import linen as nn
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge.keras_internals import seeds

RNG = np.random.default_rng(0)
registered = keras.saving.register_keras_serializable("tests")


class Row(NamedTuple):
    """A function that makes a module, and what the module is called on."""

    name: str
    make: Callable
    args: tuple
    named: dict[str, Any] = {}  # noqa: RUF012, never changed
    flag: str = ""  # the argument by which its call is told that it trains
    draws: bool = False
    fast: bool = False

    @property
    def is_linen(self) -> bool:
        return self.name.startswith("Linen")

    def layer(self, **options: Any) -> keras.layers.Layer:
        return (kfb.LinenLayer if self.is_linen else kfb.NNXLayer)(self.make, seed=3, **options)

    def flags(self, training: bool) -> dict[str, bool]:
        words = {"deterministic": not training, "use_running_average": not training}
        return {self.flag: words.get(self.flag, training)} if self.flag else {}

    @property
    def inputs(self) -> tuple[list, dict]:
        """Symbolic inputs for it."""
        new = lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype))  # noqa: E731
        return [new(x) for x in self.args], {name: new(x) for name, x in self.named.items()}

    def model(self, **options: Any) -> keras.Model:
        """A compiled Functional model of it alone."""
        args, named = self.inputs
        model = keras.Model([*args, *named.values()], self.layer(name="flax", **options)(*args, **named))
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        return model

    @property
    def x(self) -> list:
        return [*self.args, *self.named.values()]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


V, S, T = normal(8, 6), normal(8, 5, 6), normal(8, 5, 6)
TOKENS = RNG.integers(1, 10, (8, 5)).astype("int32")


# --- NNX


class Block(nnx.Module):
    """Moving statistics and random masks; told by `train()` and `eval()`."""

    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([nnx.Linear(6, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.last(self.dropout(nnx.relu(x)))


class Told(nnx.Module):
    """Told by an argument alone."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: Any, train: bool) -> Any:
        x = self.norm(x, use_running_average=not train)
        return self.last(self.dropout(x, deterministic=not train))


class Mixing(nnx.Module):
    """Two inputs and a named one."""

    def __init__(self, rngs: nnx.Rngs):
        self.a, self.b = nnx.Linear(6, 3, rngs=rngs), nnx.Linear(6, 3, use_bias=False, rngs=rngs)

    def __call__(self, a: Any, b: Any, *, scale: Any) -> Any:
        return self.a(a) + self.b(b) * scale


@registered
def nnx_block(rngs: nnx.Rngs) -> nnx.Module:
    return Block(rngs)


@registered
def nnx_told(rngs: nnx.Rngs) -> nnx.Module:
    return Told(rngs)


@registered
def nnx_mixing(rngs: nnx.Rngs) -> nnx.Module:
    return Mixing(rngs)


@registered
def nnx_mlp(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))


@registered
def nnx_lstm(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.RNN(nnx.LSTMCell(6, 4, rngs=rngs))


@registered
def nnx_gru(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.RNN(nnx.GRUCell(6, 4, rngs=rngs))


@registered
def nnx_attention(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.MultiHeadAttention(2, 6, 8, dropout_rate=0.3, decode=False, rngs=rngs)


@registered
def nnx_embedding(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Embed(10, 4, rngs=rngs)


# --- Linen


class LinenBlock(nn.Module):
    """Moving statistics and random masks."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        x = nn.Dropout(0.5)(nn.relu(x), deterministic=not train)
        return nn.Dense(3, name="last")(x)


class LinenMixing(nn.Module):
    """Two inputs and a named one; a partitioned weight."""

    @nn.compact
    def __call__(self, a: Any, b: Any, *, scale: Any) -> Any:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(3)(a) + nn.Dense(3, use_bias=False, kernel_init=init)(b) * scale


@registered
def linen_block() -> nn.Module:
    return LinenBlock()


@registered
def linen_mixing() -> nn.Module:
    return LinenMixing()


@registered
def linen_mlp() -> nn.Module:
    return nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])


@registered
def linen_norm() -> nn.Module:
    return nn.BatchNorm()


@registered
def linen_lstm() -> nn.Module:
    return nn.RNN(nn.LSTMCell(4))


@registered
def linen_gru() -> nn.Module:
    return nn.RNN(nn.GRUCell(4))


@registered
def linen_attention() -> nn.Module:
    return nn.MultiHeadDotProductAttention(2, dropout_rate=0.3)


@registered
def linen_embedding() -> nn.Module:
    return nn.Embed(10, 4)


SCALE = normal(8, 3)

ROWS = [
    Row("NNX MLP", nnx_mlp, (V,)),
    Row("NNX BatchNorm, Dropout", nnx_block, (V,), draws=True, fast=True),
    Row("NNX train=", nnx_told, (V,), flag="train", draws=True),
    Row("NNX LSTM", nnx_lstm, (S,)),
    Row("NNX GRU", nnx_gru, (S,)),
    Row("NNX MultiHeadAttention", nnx_attention, (S, T), flag="deterministic", draws=True),
    Row("NNX several inputs", nnx_mixing, (V, V[::-1].copy()), {"scale": SCALE}),
    Row("NNX Embed", nnx_embedding, (TOKENS,)),
    Row("Linen MLP", linen_mlp, (V,)),
    Row("Linen BatchNorm, Dropout", linen_block, (V,), flag="train", draws=True, fast=True),
    Row("Linen BatchNorm", linen_norm, (V,), flag="use_running_average"),
    Row("Linen LSTM", linen_lstm, (S,)),
    Row("Linen GRU", linen_gru, (S,)),
    Row("Linen MultiHeadAttention", linen_attention, (S, T), flag="deterministic", draws=True),
    Row("Linen several inputs", linen_mixing, (V, V[::-1].copy()), {"scale": SCALE}),
    Row("Linen Embed", linen_embedding, (TOKENS,)),
]


# --- the plain module


class Plain:
    """The module of a row without Keras, in the state of a layer."""

    def __init__(self, row: Row, layer: keras.layers.Layer):
        self.row = row
        if row.is_linen:
            self.module = row.make()
            keyed = row.flags(False)
            self.variables = self.module.init(jax.random.key(3), *row.args, **row.named, **keyed)
            self.seed = jnp.array([3, 0], "uint32")
        else:
            self.module = row.make(rngs=nnx.Rngs(3))

    def call(self, training: bool) -> Any:
        """A call that updates the state; its outputs."""
        row, flags = self.row, self.row.flags(training)
        if not row.is_linen:
            self.module.train() if training else self.module.eval()
            return self.module(*row.args, **row.named, **flags)
        params, others = self.split()
        outputs, self.variables = linen_call(self, params, others, training)
        return outputs

    def split(self) -> tuple[Any, Any]:
        """Of a Linen module: parameters, and all other collections."""
        others = {name: tree for name, tree in self.variables.items() if name != "params"}
        return self.variables["params"], others

    def state(self) -> list[np.ndarray]:
        """The leaves in the order of the layer's weights."""
        if self.row.is_linen:
            params, others = self.split()
            return [np.asarray(leaf) for leaf in [*jax.tree.leaves((params, others)), self.seed]]
        _, params, others = nnx.split(self.module, nnx.Param, ...)
        leaves = jax.tree.leaves((params, others))
        return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]


def is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def linen_call(plain: Plain, params: Any, others: Any, training: bool) -> tuple[Any, Any]:
    """Outputs and variables afterwards; the dropout key is the one that the layer derives."""
    row, rngs = plain.row, {}
    if row.draws and training:
        key = jax.random.wrap_key_data(plain.seed, impl="threefry2x32")
        rngs = {"dropout": seeds.fold(key, ("dropout",))}
        plain.seed = plain.seed + jnp.array([0, 1], "uint32")
    outputs, updates = plain.module.apply(
        {"params": params, **others},
        *row.args,
        **row.named,
        **row.flags(training),
        rngs=rngs,
        mutable=list(others),
    )
    return outputs, {"params": params, **others, **updates}
