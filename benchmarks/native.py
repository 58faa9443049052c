"""Native modules of `kfb.migrate` against Keras's `stateless_call`, and against the model written by hand."""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import measure
import numpy as np
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flax import nnx
from keras import layers as L

NATIVE, KERAS, HAND = "to_nnx", "stateless_call", "by hand"
Parts = tuple[Callable, list]  # a pure function of weights, an input and `training`, and the weights


def mlp() -> keras.Model:
    hidden = [L.Dense(256, "relu"), L.BatchNormalization(), L.Dense(256, "relu")]
    return keras.Sequential([keras.Input((64,)), *hidden, L.Dense(10)])


def lstm() -> keras.Model:
    x = keras.Input((20, 16))
    return keras.Model(x, L.Dense(10)(L.LSTM(32)(x)))


def transformer() -> keras.Model:
    inputs = keras.Input((32,), dtype="int32")
    x = L.Embedding(100, 64)(inputs)
    for _ in range(2):
        x = L.LayerNormalization()(x + L.MultiHeadAttention(4, 16)(x, x))
        x = L.LayerNormalization()(x + L.Dense(64)(L.Dense(256, "gelu")(x)))
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling1D()(x)))


def resnet(side: int) -> keras.Model:
    shape = side, side, 3
    return keras.applications.ResNet50(weights=None, include_top=False, pooling="avg", input_shape=shape)


class ByHand(nnx.Module):
    """What a person would write for `mlp`."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 256, rngs=rngs)
        self.norm = nnx.BatchNorm(256, epsilon=1e-3, use_fast_variance=False, rngs=rngs)
        self.second = nnx.Linear(256, 256, rngs=rngs)
        self.last = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(nnx.relu(self.first(x)))
        return self.last(nnx.relu(self.second(x)))


def keras_parts(model: keras.Model) -> Parts:
    held = [[v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]]

    def call(weights: list, x: jax.Array, training: bool) -> tuple:
        return model.stateless_call(*weights, x, training=training)

    return call, held


def native_parts(module: nnx.Module) -> Parts:
    """Split once in each mode; what a pass without training leaves behind nobody asks for."""
    module.train()
    graphs = {True: nnx.graphdef(module)}
    module.eval()
    graphs[False], *states = nnx.split(module, nnx.Param, ...)
    (leaves, tree), (others, other_tree) = map(jax.tree.flatten, states)

    def call(weights: list, x: jax.Array, training: bool) -> tuple:
        module = nnx.merge(graphs[training], tree.unflatten(weights[0]), other_tree.unflatten(weights[1]))
        y = module(x)
        return y, jax.tree.leaves(nnx.state(module, nnx.Not(nnx.Param))) if training else []

    return call, [leaves, others]


def forward(parts: Parts) -> Callable:
    return jax.jit(lambda weights, x: parts[0](weights, x, False)[0])


def step(parts: Parts) -> Callable:
    def loss(trained: list, rest: list, x: jax.Array) -> tuple:
        y, state = parts[0]([trained, rest], x, True)
        return jnp.mean(y**2), state

    @jax.jit
    def run(weights: list, x: jax.Array) -> list:
        (_, state), grads = jax.value_and_grad(loss, has_aux=True)(*weights, x)
        return [[w - 0.01 * g for w, g in zip(weights[0], grads, strict=True)], state]

    return run


def competitor(parts: Parts, x: jax.Array, times: int) -> measure.Competitor:
    """Times forward passes, training steps, and the trace of each."""
    weights, run, train = parts[1], forward(parts), step(parts)

    def compete(clock: measure.Clock) -> Any:
        for phase, call in (("forward", run), ("training step", train)):
            with clock(phase, per=times):
                for _ in range(times):
                    outputs = call(weights, x)
                jax.block_until_ready(outputs)
        for phase, program in (("trace", forward(parts)), ("trace of a step", step(parts))):
            with clock(phase):
                program.trace(weights, x)
        return outputs

    return compete


def compared(model: keras.Model, x: jax.Array, times: int) -> dict[str, measure.Competitor]:
    native = native_parts(kfb.migrate.to_nnx(model, check_outputs=False))
    sides = {NATIVE: native, KERAS: keras_parts(model)}
    return {name: competitor(parts, x, times) for name, parts in sides.items()}


AGAINST_KERAS = [
    measure.Target(phase, NATIVE, KERAS, limit)
    for phase, limit in (("forward", 1.0), ("training step", 1.0), ("trace", 0.75), ("trace of a step", 0.75))
]
AGAINST_HAND = [
    measure.Target(phase, NATIVE, HAND, limit)
    for phase, limit in (
        ("forward", 1.02),
        ("training step", 1.02),
        ("trace", None),
        ("trace of a step", None),
    )
]


def conversion(model: keras.Model, clock: measure.Clock) -> Any:
    with clock("conversion"):
        module = kfb.migrate.to_nnx(model, check_outputs=False)
    return nnx.state(module)


def copies(model: keras.Model, clock: measure.Clock) -> Any:
    with clock("conversion"):
        return jax.block_until_ready([jnp.array(v.value) for v in model.weights])


def works(smoke: bool) -> Iterator[measure.Work]:
    rng, side, times = np.random.default_rng(0), 32 if smoke else 64, 1 if smoke else 40

    def floats(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    tokens = jnp.asarray(rng.integers(0, 100, (16, 32)))
    rows = {
        "MLP": (mlp, floats(32, 64), 5 * times),
        "LSTM": (lstm, floats(32, 20, 16), times),
        "transformer": (transformer, tokens, max(times // 4, 1)),
        "ResNet50": (partial(resnet, side), floats(4, side, side, 3), max(times // 20, 1)),
    }
    if smoke:
        del rows["ResNet50"]
    for name, (build, x, count) in rows.items():
        model = build()
        yield measure.Work(name, compared(model, x, count), AGAINST_KERAS, measure.finite, 3)
    model, hand = mlp(), ByHand(nnx.Rngs(0))
    hands = {HAND: competitor(native_parts(hand), *rows["MLP"][1:])}
    sides = compared(model, *rows["MLP"][1:]) | hands
    yield measure.Work("MLP written by hand", sides, AGAINST_HAND, measure.finite, 3)
    large = mlp() if smoke else keras.applications.ResNet152(weights=None)
    makers = {NATIVE: partial(conversion, large), "copies alone": partial(copies, large)}
    targets = [measure.Target("conversion", NATIVE, ""), measure.Target("conversion", "copies alone", "")]
    yield measure.Work("ResNet152, seconds", makers, targets, measure.finite)


if __name__ == "__main__":
    measure.main("native", works)
