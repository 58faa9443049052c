"""The four programs of Keras's guide "Writing a training loop from scratch in JAX", on the bridge.

https://keras.io/guides/writing_a_custom_training_loop_in_jax/. Each is compared with `fit` on the
same batches. Where the loss is written by hand, the numbers are those of another program than
Keras's: the same arithmetic, grouped and so rounded differently by XLA.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.tables import contracts

ROUNDING = {"rtol": 2e-5, "atol": 1e-6}
X, Y = contracts.SEQUENTIAL.x, contracts.SEQUENTIAL.y


def mlp(*extra):
    """The guide's model, small: two hidden layers, and logits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(8, "relu", name="hidden_1")(inputs)
    for layer in extra:
        x = layer(x)
    x = layers.Dense(8, "relu", name="hidden_2")(x)
    return keras.Model(inputs, layers.Dense(3, name="predictions")(x))


def compiled(*extra, optimizer="adam"):
    model = mlp(*extra)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=[keras.metrics.SparseCategoricalAccuracy()])
    return model


def fit(model):
    history = model.fit(X, Y, batch_size=contracts.SIZE, shuffle=False, verbose=0)
    return {name: values[0] for name, values in history.history.items()}


def by_hand(state, batch):
    """The guide's step as Flax code: loss, gradients, update."""
    x, y = batch

    def loss_fn(params):
        variables = {"params": params, "non_trainable": state.non_trainable}
        logits, updates = state.apply_fn(variables, x, training=True, mutable=["non_trainable", "losses"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss + sum(updates["losses"]), updates["non_trainable"]  # a pair: what has_aux asks for

    (loss, non_trainable), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, non_trainable=non_trainable), loss


def run(step, state):
    for batch in contracts.SEQUENTIAL.batches():
        state, out = step(state, batch)
    return state, out


def close(state, model):
    """Weights and slots of the state against those of the fitted model."""
    wanted = kfb.TrainState.from_keras(model)
    for tree in ("params", "non_trainable", "opt_state"):
        flat = flatten_tree(getattr(wanted, tree))
        for path, leaf in flatten_tree(getattr(state, tree)).items():
            np.testing.assert_allclose(leaf, flat[path], err_msg=join_path(path), **ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam(), optax.adam(1e-3)], ids=["keras", "optax"])
def test_a_end_to_end_loop(optimizer):
    model = mlp()
    state, loss = run(by_hand, kfb.TrainState.from_keras(model, optimizer=optimizer).replace(step=0))
    assert int(state.step) == contracts.STEPS
    if isinstance(optimizer, keras.optimizers.Optimizer):
        fitted = compiled()
        fit(fitted)
        close(state, fitted)
    assert np.isfinite(loss)


@pytest.mark.slow
def test_b_compiled_step_is_fit_to_the_bit():
    fitted, model = compiled(layers.Dropout(0.2, seed=3)), compiled(layers.Dropout(0.2, seed=3))
    wanted = fit(fitted)
    state, logs = run(kfb.make_train_step(model), kfb.TrainState.from_keras(model))
    assert {name: float(value) for name, value in logs.items()} == wanted
    reference = kfb.TrainState.from_keras(fitted)
    for tree in ("params", "non_trainable", "opt_state", "metrics"):
        flat = flatten_tree(getattr(reference, tree))
        assert all(np.array_equal(leaf, flat[p]) for p, leaf in flatten_tree(getattr(state, tree)).items())


def test_b_compiled_step_by_hand():
    fitted, model = compiled(), mlp()
    fit(fitted)
    state, _ = run(jax.jit(by_hand), kfb.TrainState.from_keras(model, optimizer="adam"))
    close(state, fitted)


@pytest.mark.slow
def test_c_metrics_of_training_and_validation_are_apart():
    model, seen = compiled(), []
    validation = X[:40], Y[:40]
    wanted = (
        compiled()
        .fit(
            X,
            Y,
            batch_size=contracts.SIZE,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=validation,
            validation_batch_size=20,
        )
        .history
    )
    state = kfb.TrainState.from_keras(model)
    train_step, eval_step = kfb.make_train_step(model), kfb.make_eval_step(model)
    for _ in range(2):
        state = state.reset_metrics()
        for i, batch in enumerate(contracts.SEQUENTIAL.batches()):
            state, logs = train_step(state, batch)
            if i == contracts.STEPS // 2:  # in mid-epoch: nothing of it may reach the training metrics
                state, _ = eval_step(state, validation)
        evaluated = state.reset_metrics()
        for part in (slice(0, 20), slice(20, 40)):
            evaluated, eval_logs = eval_step(evaluated, (X[part], Y[part]))
        seen.append({**logs, **{f"val_{name}": value for name, value in eval_logs.items()}})
    for epoch, row in enumerate(seen):
        assert {name: float(value) for name, value in row.items()} == {n: v[epoch] for n, v in wanted.items()}


class ActivityLoss(layers.Layer):
    """The guide's layer that raises a loss of its own."""

    def call(self, x):
        self.add_loss(1e-2 * jnp.sum(x))
        return x


@pytest.mark.slow
@pytest.mark.parametrize("step", ["keras", "by hand"])
def test_d_losses_that_layers_raise(step):
    fitted, model = compiled(ActivityLoss()), compiled(ActivityLoss())
    fit(fitted)
    state = kfb.TrainState.from_keras(model)
    state, _ = run(kfb.make_train_step(model) if step == "keras" else jax.jit(by_hand), state)
    close(state, fitted)
    without = compiled()
    fit(without)
    assert not np.allclose(without.get_weights()[0], fitted.get_weights()[0])
