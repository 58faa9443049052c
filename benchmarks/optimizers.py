"""A step of a Keras optimizer as native optax against Keras's own `stateless_apply`.

Both sides update the parameters of ResNet50: 161 arrays, 25.6 million numbers.
"""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import measure
import optax
from collections.abc import Callable, Iterator
from typing import Any

NATIVE, KERAS = "to_optax", "stateless_apply"
LISTS = "to_optax, lists"  # its trees flattened around the step, as Keras's are
MAKERS = {
    "SGD momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "AdamW, clipped": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0),
    "Lion": lambda: keras.optimizers.Lion(1e-4),
    "Adafactor": lambda: keras.optimizers.Adafactor(1e-3),
}


def model_of(smoke: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    if not smoke:
        return keras.applications.ResNet50(weights=None)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def gradient(parameter: jax.Array) -> jax.Array:
    return 0.01 * parameter + 1e-3


def competitors(make: Callable, model: keras.Model, steps: int) -> dict[str, measure.Competitor]:
    optimizer = make()
    optimizer.build(model.trainable_variables)
    moved = kfb.TrainState.from_keras(model, optimizer=optimizer).to_optax()
    grads = jax.tree.map(gradient, moved.params)
    values = [jax.numpy.copy(variable.value) for variable in model.trainable_variables]
    slots = [jax.numpy.copy(variable.value) for variable in optimizer.variables]
    flat = list(map(gradient, values))

    def by_keras(state: tuple, grads: list) -> tuple:
        return optimizer.stateless_apply(state[1], grads, state[0])

    def by_optax(state: tuple, grads: dict) -> tuple:
        updates, opt_state = moved.tx.update(grads, state[1], state[0])
        return optax.apply_updates(state[0], updates), opt_state

    state = moved.params, moved.opt_state
    leaves, tree = jax.tree.flatten((state, grads))
    count = len(jax.tree.leaves(state))

    def by_lists(state: list, grads: list) -> list:
        return jax.tree.leaves(by_optax(*tree.unflatten([*state, *grads])))

    def competitor(step: Callable, state: Any, grads: Any) -> measure.Competitor:
        step = jax.jit(step, donate_argnums=0)
        return measure.repeated(lambda s: step(s, grads), jax.tree.map(jax.numpy.copy, state), steps)

    return {
        NATIVE: competitor(by_optax, state, grads),
        LISTS: competitor(by_lists, leaves[:count], leaves[count:]),
        KERAS: competitor(by_keras, (values, slots), flat),
    }


def works(smoke: bool) -> Iterator[measure.Work]:
    model = model_of(smoke)
    targets = [measure.Target("step", NATIVE, KERAS, 1.0), measure.Target("step", LISTS, KERAS)]
    for name, make in MAKERS.items():
        yield measure.Work(name, competitors(make, model, 2 if smoke else 10), targets, measure.finite, 3)


if __name__ == "__main__":
    measure.main("optimizers", works)
