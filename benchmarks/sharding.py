"""A step on a mesh against the one that an expert writes by hand, at 1, 2, 4 and 8 virtual devices.

Weak scaling: each device has as many rows of a batch whatever their number. By hand means Keras's own
`stateless_call` and `stateless_apply` under a `jax.jit` with the same shardings, its state in lists.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before jax looks for devices

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import measure
import numpy as np
import peers
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS, WIDTH = 32, 256
STEPS = 25  # in one go; where more than some 30 wait for a virtual device, XLA can hang
BRIDGE, HAND = "kfb", "by hand"


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(WIDTH, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.optimizer.build(model.trainable_variables)
    return model


def by_hand(model: keras.Model, everywhere: NamedSharding, rows: NamedSharding) -> tuple[Callable, Any]:
    held = peers.variables(model)
    state = tuple([jax.device_put(np.array(v.value), everywhere) for v in part] for part in held)
    jitted = jax.jit(peers.plain_step(model), donate_argnums=0, out_shardings=(everywhere, everywhere))
    return lambda state, batch: jitted(state, jax.device_put(batch, rows)), state


def by_bridge(model: keras.Model, mesh: Mesh) -> tuple[Callable, Any]:
    return kfb.make_train_step(model, mesh=mesh), kfb.shard(kfb.TrainState.from_keras(model), mesh, [])


def trained(step: Callable, begin: Any, batch: Any, steps: int, clock: measure.Clock) -> Any:
    """The loss after some steps from the beginning, on copies of its arrays."""
    state = jax.block_until_ready(jax.tree.map(lambda x: jax.jit(jax.numpy.copy)(x), begin))
    with clock("step"):
        for _ in range(steps):
            state, logs = step(state, batch)
        jax.block_until_ready(state)
    return logs["loss"] if isinstance(logs, dict) else logs


def check(loss: Any) -> None:
    assert np.isfinite(float(loss))


def works(smoke: bool) -> Iterator[measure.Work]:
    rng, steps = np.random.default_rng(0), 2 if smoke else STEPS
    for count in (1, 2) if smoke else (1, 2, 4, 8):
        mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
        x = rng.standard_normal((ROWS * count, 784)).astype("float32")
        batch = x, rng.integers(0, 10, ROWS * count).astype("int32")
        makers = {
            BRIDGE: by_bridge(build(), mesh),
            HAND: by_hand(build(), NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))),
        }
        competitors = {
            name: partial(trained, step, begin, batch, steps) for name, (step, begin) in makers.items()
        }
        target = measure.Target("step", BRIDGE, HAND, 1.02)
        yield measure.Work(f"{count} devices, {ROWS} rows each", competitors, [target], check)


if __name__ == "__main__":
    measure.main("sharding", works)
