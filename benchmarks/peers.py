"""What a step of the bridge is compared with: each peer is a step and its first state.

`by_hand` is the loop of Keras's guide on training in JAX: `stateless_call`, `stateless_apply`, lists of
arrays, compiled, its buffers donated.
"""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import measure
import optax
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
from flax import nnx
from flax.training import train_state

Peer = tuple[Callable[[Any, tuple], Any], Any]
WIDTHS = (64, 64, 10)


def mlp() -> keras.Model:
    """784-64-64-10, compiled with Adam and a metric."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(n, "relu") for n in WIDTHS[:-1]]
    return compiled(keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(WIDTHS[-1])]))


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["sparse_categorical_accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


def values(variables: Sequence) -> list:
    return [jnp.copy(variable.value) for variable in variables]


def variables(model: keras.Model) -> tuple[list, list, list]:
    """What a step without metrics has as its state."""
    return model.trainable_variables, model.non_trainable_variables, model.optimizer.variables


def plain_step(model: keras.Model) -> Callable[[tuple, tuple], tuple[tuple, Any]]:
    """The step written by hand, without metrics and not compiled."""

    def loss_of(trained: list, others: list, x: Any, y: Any) -> Any:
        outputs, others = model.stateless_call(trained, others, x, training=True)
        return model.loss(y, outputs), others

    def step(state: tuple, batch: tuple) -> tuple[tuple, Any]:
        trained, others, slots = state
        (loss, others), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, others, *batch)
        trained, slots = model.optimizer.stateless_apply(slots, grads, trained)
        return (trained, others, slots), loss

    return step


def hand_step(model: keras.Model) -> tuple[Callable, tuple]:
    """The step written by hand, not compiled, and its state; it gives the next state and the loss."""
    metrics = model.metrics

    def loss_of(trained: list, others: list, x: Any, y: Any) -> Any:
        outputs, others = model.stateless_call(trained, others, x, training=True)
        return model.loss(y, outputs), (outputs, others)

    def step(state: tuple, batch: tuple) -> tuple[tuple, Any]:
        trained, others, slots, sums = state
        x, y = batch
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (outputs, others)), grads = gradient(trained, others, x, y)
        trained, slots = model.optimizer.stateless_apply(slots, grads, trained)
        after, rest = [], sums
        for metric in metrics:
            own, rest = rest[: len(metric.variables)], rest[len(metric.variables) :]
            given = (loss,) if metric.name == "loss" else (y, outputs)
            after += metric.stateless_update_state(own, *given)
        return (trained, others, slots, after), loss

    x, y = jnp.zeros((1, *model.input_shape[1:])), jnp.zeros((1,), jnp.int32)
    model.compute_metrics(x, y, model(x))  # builds them
    model.reset_metrics()
    sums = [v for metric in metrics for v in metric.variables]
    return step, tuple(values(part) for part in (*variables(model), sums))


def by_hand(model: keras.Model) -> Peer:
    step, state = hand_step(model)
    jitted = jax.jit(step, donate_argnums=0)
    return lambda state, batch: jitted(state, batch)[0], state


def bare_scan(model: keras.Model, unroll: int = 1) -> Peer:
    """The limit of dispatch: the step written by hand over stacked batches in one program."""
    step, state = hand_step(model)

    def steps(state: tuple, batches: tuple) -> tuple:
        return jax.lax.scan(step, state, batches, unroll=unroll)

    jitted = jax.jit(steps, donate_argnums=0)
    return lambda state, batches: jitted(state, batches)[0], state


def by_bridge(model: keras.Model, **options: Any) -> Peer:
    step = kfb.make_train_step(model, **options)
    return lambda state, batch: step(state, batch)[0], kfb.TrainState.from_keras(model)


class NNXMLP(nnx.Module):
    """The same in plain Flax NNX."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = zip((784, *WIDTHS), WIDTHS, strict=False)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in sizes])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def flax_nnx(cached: bool = False) -> Peer:
    model = NNXMLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())

    @nnx.jit(donate_argnums=(0, 1, 2))
    def train(model: Any, optimizer: Any, metrics: Any, x: Any, y: Any) -> None:
        def loss_of(model: Any) -> Any:
            logits = model(x)
            return cross_entropy(logits, y), logits

        (loss, logits), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, grads)
        metrics.update(loss=loss, logits=logits, labels=y)

    held = model, optimizer, metrics
    call = nnx.cached_partial(train, *held) if cached else lambda x, y: train(*held, x, y)

    def step(bias: nnx.Param, batch: tuple) -> nnx.Param:
        call(*batch)  # updates the module in place
        return bias

    return step, model.layers[-1].bias


class LinenMLP(nn.Module):
    """The same in Flax Linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in WIDTHS[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(WIDTHS[-1])(x)


def flax_linen() -> Peer:
    """With a `TrainState`, optax, and sums of the metrics beside them."""
    model = LinenMLP()
    params = model.init(jax.random.key(0), jnp.zeros((1, 784)))["params"]
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))

    def step(both: tuple, batch: tuple) -> tuple:
        (state, sums), (x, y) = both, batch

        def loss_of(params: Any) -> Any:
            logits = state.apply_fn({"params": params}, x)
            return cross_entropy(logits, y), logits

        (loss, logits), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        right = (logits.argmax(-1) == y).sum()
        sums = jax.tree.map(jnp.add, sums, (loss * y.size, right, jnp.asarray(y.size)))
        return state.apply_gradients(grads=grads), sums

    sums = jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return jax.jit(step, donate_argnums=0), (state, sums)


def over(peer: Peer, batches: Sequence[tuple], *, per: int = 1, repeat: int = 1) -> measure.Competitor:
    """A competitor that steps through batches, some times over, and goes on there in the next round."""
    step, held = peer[0], [peer[1]]

    def compete(clock: measure.Clock) -> Any:
        state = held.pop()
        with clock("step", per=repeat * len(batches) * per):
            for _ in range(repeat):
                for batch in batches:
                    state = step(state, batch)
            jax.block_until_ready(jax.tree.leaves(state))
        held.append(state)
        return jax.tree.leaves(state)

    return compete


def fitted(model: keras.Model, x: Any, y: Any, size: int) -> measure.Competitor:
    """`fit` over the same batches."""

    def compete(clock: measure.Clock) -> Any:
        with clock("step", per=len(x) // size):
            history = model.fit(x, y, batch_size=size, shuffle=False, verbose=0)
        return jnp.asarray(history.history["loss"])

    return compete
