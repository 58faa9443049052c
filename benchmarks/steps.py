"""Training steps of the bridge against the loop written by hand, `fit`, plain Flax and a bare scan."""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import measure
import numpy as np
import peers
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

BRIDGE, HAND, FIT, SCAN = "make_train_step", "by hand", "fit", "bare lax.scan"
STACKED, OWN = "steps_per_call=32", "jax.jit of a TrainState"
SIZE, STEPS = 32, 320


def data(steps: int, shape: tuple, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * size, *shape)).astype("float32")
    return x, rng.integers(0, 10, len(x)).astype("int32")


def cut(x: np.ndarray, y: np.ndarray, size: int) -> list[tuple]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def small(steps: int) -> measure.Work:
    """Time goes to dispatch: 784-64-64-10."""
    x, y = data(steps, (784,), SIZE)
    batches = cut(x, y, SIZE)
    contestants = {
        BRIDGE: peers.by_bridge(peers.mlp()),
        HAND: peers.by_hand(peers.mlp()),
        "Flax NNX, nnx.jit": peers.flax_nnx(),
        "Flax NNX, cached_partial": peers.flax_nnx(cached=True),
        "Flax Linen, TrainState": peers.flax_linen(),
    }
    competitors = {name: peers.over(peer, batches) for name, peer in contestants.items()}
    competitors[FIT] = peers.fitted(peers.mlp(), x, y, SIZE)
    limits = {HAND: 1.02, FIT: 0.77}
    targets = [
        measure.Target("step", BRIDGE, name, limits.get(name)) for name in competitors if name != BRIDGE
    ]
    return measure.Work("MLP, batch 32", competitors, targets, measure.finite, 3)


def stacked(steps: int, per: int) -> measure.Work:
    """Several steps in one program."""
    x, y = data(steps, (784,), SIZE)
    batches = cut(x, y, SIZE)
    stacks = [
        tuple(part.reshape(per, SIZE, *part.shape[1:]) for part in pair) for pair in cut(x, y, SIZE * per)
    ]
    competitors = {
        STACKED: peers.over(peers.by_bridge(peers.mlp(), steps_per_call=per), stacks, per=per),
        SCAN: peers.over(peers.bare_scan(peers.mlp()), stacks, per=per),
        HAND: peers.over(peers.by_hand(peers.mlp()), batches),
    }
    targets = [
        measure.Target("step", STACKED, SCAN, 1.03),
        measure.Target("step", STACKED, HAND, 0.75),
        measure.Target("step", SCAN, HAND),
    ]
    return measure.Work("MLP, 32 steps in a call", competitors, targets, measure.finite, 3)


def resnet(side: int, smoke: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    if not smoke:
        return peers.compiled(
            keras.applications.ResNet50(weights=None, input_shape=(side, side, 3), classes=10)
        )
    layers = [keras.layers.Conv2D(4, 3, strides=4), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    return peers.compiled(keras.Sequential([keras.Input((side, side, 3)), *layers, keras.layers.Dense(10)]))


def large(steps: int, smoke: bool) -> measure.Work:
    """Time goes to arithmetic: ResNet50."""
    side, size = 64, 8
    x, y = data(steps, (side, side, 3), size)
    batches = cut(x, y, size)
    competitors = {
        BRIDGE: peers.over(peers.by_bridge(resnet(side, smoke)), batches),
        HAND: peers.over(peers.by_hand(resnet(side, smoke)), batches),
        FIT: peers.fitted(resnet(side, smoke), x, y, size),
    }
    targets = [measure.Target("step", BRIDGE, HAND, 1.01), measure.Target("step", BRIDGE, FIT, 1.0)]
    return measure.Work("ResNet50, 64 px, batch 8", competitors, targets, measure.finite)


def first(make: Callable[[], peers.Peer], batch: tuple, clock: measure.Clock) -> Any:
    """Trace and compilation, with nothing cached."""
    jax.clear_caches()
    step, state = make()
    with clock("first step"):
        state = jax.block_until_ready(jax.tree.leaves(step(state, batch)))
    return state


def first_steps(smoke: bool) -> measure.Work:
    side, size = 64, 8
    (batch,) = cut(*data(1, (side, side, 3), size), size)
    models = {BRIDGE: (peers.by_bridge, resnet(side, smoke)), HAND: (peers.by_hand, resnet(side, smoke))}
    competitors = {
        name: partial(first, partial(make, model), batch) for name, (make, model) in models.items()
    }
    targets = [measure.Target("first step", BRIDGE, HAND, 1.03)]
    return measure.Work("ResNet50, first step", competitors, targets, measure.finite)


class Still(keras.Sequential):
    """A model whose training step gives back its state."""

    def train_step(self, state: Any, data: Any) -> tuple:
        return {}, state


def no_op(leaves: int, times: int) -> measure.Work:
    """Dispatch alone: a step that gives back its state, against a flat list of as many arrays."""
    keras.utils.set_random_seed(0)
    model = Still([keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(leaves // 6))])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    state, (batch,) = kfb.TrainState.from_keras(model), cut(*data(1, (2,), 1), 1)
    flat = [jnp.copy(leaf) for leaf in jax.tree.leaves(state)]

    def still(state: Any, batch: Any) -> Any:
        return state

    def competitor(step: Callable, state: Any) -> measure.Competitor:
        return measure.repeated(lambda state: step(state, batch), state, times)

    step = kfb.make_train_step(model)
    competitors = {
        BRIDGE: competitor(lambda *args: step(*args)[0], state),
        OWN: competitor(jax.jit(still, donate_argnums=0), jax.tree.map(jnp.copy, state)),
        "flat list": competitor(jax.jit(still, donate_argnums=0), flat),
    }
    targets = [
        measure.Target("step", BRIDGE, "flat list", 1.15),
        measure.Target("step", OWN, "flat list"),
    ]
    return measure.Work(f"no-op step of {len(flat)} leaves", competitors, targets, measure.finite, 3)


def works(smoke: bool) -> Iterator[measure.Work]:
    yield small(4 if smoke else STEPS)
    yield stacked(4 if smoke else STEPS, 2 if smoke else 32)
    yield no_op(80 if smoke else 4000, 2 if smoke else 50)
    yield large(2 if smoke else 10, smoke)
    yield first_steps(smoke)


if __name__ == "__main__":
    measure.main("steps", works)
