"""Times native modules against Keras's `stateless_call` and against the same model written by hand.

    python benchmarks/native.py [--smoke]

Each pair is timed in turns, so that a busy machine slows both; what is printed is the median of the
ratios, with the range of its middle half. `--smoke` runs everything once and small.
"""

import argparse
import time
from collections.abc import Callable

import keras_flax_bridge as kfb

import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx
from keras import layers as L


def mlp() -> keras.Model:
    return keras.Sequential(
        [keras.Input((64,)), L.Dense(256, "relu"), L.BatchNormalization(), L.Dense(256, "relu"), L.Dense(10)]
    )


def lstm() -> keras.Model:
    x = keras.Input((20, 16))
    return keras.Model(x, L.Dense(10)(L.LSTM(32)(x)))


def resnet(side: int) -> keras.Model:
    return keras.applications.ResNet50(
        weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3)
    )


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


def keras_parts(model: keras.Model) -> tuple[Callable, list]:
    """A pure function of the weights, and the weights."""
    held = [[v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]]

    def call(weights: list, x: jax.Array, training: bool) -> tuple:
        return model.stateless_call(*weights, x, training=training)

    return call, held


def native_parts(module: nnx.Module) -> tuple[Callable, list]:
    """The same of a module, over flat lists of leaves."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    others, other_tree = jax.tree.flatten(rest)

    def call(weights: list, x: jax.Array, training: bool) -> tuple:
        module = nnx.merge(graph, tree.unflatten(weights[0]), other_tree.unflatten(weights[1]), copy=True)
        module.train() if training else module.eval()
        y = module(x)
        return y, jax.tree.leaves(nnx.split(module, nnx.Param, ...)[2])

    return call, [leaves, others]


def forward(parts: tuple[Callable, list], x: jax.Array) -> Callable:
    call, weights = parts
    run = jax.jit(lambda weights, x: call(weights, x, False)[0])
    return lambda: jax.block_until_ready(run(weights, x))


def step(parts: tuple[Callable, list], x: jax.Array) -> Callable:
    call, weights = parts

    def loss(trained: list, rest: list, x: jax.Array) -> tuple:
        y, state = call([trained, rest], x, True)
        return jnp.mean(y**2), state

    @jax.jit
    def run(weights: list, x: jax.Array) -> tuple:
        (_, state), grads = jax.value_and_grad(loss, has_aux=True)(*weights, x)
        return [w - 0.01 * g for w, g in zip(weights[0], grads, strict=True)], state

    return lambda: jax.block_until_ready(run(weights, x))


def trace(parts: tuple[Callable, list], x: jax.Array) -> Callable:
    call, weights = parts
    return lambda: jax.jit(lambda weights, x: call(weights, x, False)[0]).trace(weights, x)


def seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratio(ours: Callable, theirs: Callable, times: int) -> str:
    """The median of the ratios of times taken in turns, and the range of the middle half."""
    ours(), theirs()
    found = [seconds(ours) / seconds(theirs) for _ in range(times)]
    low, middle, high = np.percentile(found, [25, 50, 75])
    return f"{middle:.3f}  ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="once and small")
    smoke = parser.parse_args().smoke
    times, side = (1, 32) if smoke else (41, 64)
    cases = {"mlp": (mlp(), (32, 64)), "lstm": (lstm(), (32, 20, 16))}
    if not smoke:
        cases["resnet50"] = (resnet(side), (4, side, side, 3))
    print("ratio of native Flax to Keras's stateless_call; below 1 is faster")
    for name, (model, shape) in cases.items():
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
        native = native_parts(kfb.migrate.to_nnx(model, check_outputs=False))
        theirs = keras_parts(model)
        repeats = times if name != "resnet50" else max(times // 2, 1)
        for label, made in (("forward", forward), ("training step", step), ("trace", trace)):
            print(f"  {name:<9} {label:<14} {ratio(made(native, x), made(theirs, x), repeats)}")
    by_hand = native_parts(ByHand(nnx.Rngs(0)))
    native = native_parts(kfb.migrate.to_nnx(cases["mlp"][0], check_outputs=False))
    x = jnp.ones((32, 64))
    print("ratio of native Flax to the same model written by hand")
    for label, made in (("forward", forward), ("training step", step)):
        print(f"  {'mlp':<9} {label:<14} {ratio(made(native, x), made(by_hand, x), times)}")
    name = "ResNet50" if smoke else "ResNet152"
    model = getattr(keras.applications, name)(weights=None)
    kfb.migrate.to_nnx(model, check_outputs=False)
    whole = min(
        seconds(lambda: kfb.migrate.to_nnx(model, check_outputs=False)) for _ in range(1 if smoke else 3)
    )
    copies = seconds(lambda: jax.block_until_ready([jnp.array(v.value) for v in model.weights]))
    print(f"to_nnx of {name}: {whole:.2f} s, of which {copies:.2f} s copy the weights")


if __name__ == "__main__":
    main()
