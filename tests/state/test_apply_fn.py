"""TrainState.apply_fn and apply_gradients: Flax code runs unchanged."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.cases import equal
from tests.support.flax_steps import flax_train_step
from tests.support.models.graphs import two_layers
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


@pytest.mark.parametrize("optimizer", [optax.adam(1e-2), keras.optimizers.Adam(1e-2)], ids=["optax", "keras"])
def test_flax_code_runs_unchanged(optimizer):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, "relu"), layers.Dropout(0.5), layers.Dense(3)]
    )
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    step, losses = jax.jit(flax_train_step), []
    for _ in range(20):
        state, loss = step(state, BATCH)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert int(state.step) == 20


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.optimizers.Adam(),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        keras.optimizers.SGD(0.1, loss_scale_factor=8.0),
    ],
    ids=["momentum", "adam", "dynamic scale", "fixed scale"],
)
def test_apply_gradients_is_exact_for_keras_optimizers(optimizer):
    def build():
        model = two_layers()
        fresh = type(optimizer).from_config(optimizer.get_config())
        model.compile(fresh, "sparse_categorical_crossentropy")
        return model

    def loss_fn(params, state):
        y_pred = state.apply_fn({"params": params}, BATCH[0], training=True)
        return jnp.mean(keras.losses.sparse_categorical_crossentropy(BATCH[1], y_pred))

    model = build()
    state = kfb.TrainState.from_keras(model)
    grads = jax.jit(jax.grad(loss_fn))(state.params, state)
    state = jax.jit(lambda s, g: s.apply_gradients(grads=g))(state, grads)
    reference, _ = kfb.make_train_step(build())(kfb.TrainState.from_keras(build()), BATCH)
    for path, leaf in flatten_tree((state.params, state.opt_state)).items():
        wanted = flatten_tree((reference.params, reference.opt_state))[path]
        # the same rule on gradients of two programs: XLA may round their sums differently
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-7, err_msg=join_path(path))


@pytest.mark.slow
def test_apply_fn_returns_updates_and_losses(model):
    state = kfb.TrainState.from_keras(model)
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    plain = state.apply_fn(variables, BATCH[0])
    outputs, updates = state.apply_fn(variables, BATCH[0], training=True, mutable=["non_trainable", "losses"])
    assert plain.shape == outputs.shape == (8, 3)
    assert not equal(updates["non_trainable"], state.non_trainable)
    assert len(updates["losses"]) == 1  # the regularizer
    assert int(updates["non_trainable"]["dropout"]["seed_generator_state"][1]) == 1


def test_apply_fn_derives_seeds_from_a_key(model):
    state = kfb.TrainState.from_keras(model)
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    call = lambda key: state.apply_fn(variables, BATCH[0], training=True, rngs={"dropout": key})  # noqa: E731
    one, again, other = call(jax.random.key(0)), call(jax.random.key(0)), call(jax.random.key(1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_apply_fn_names_what_is_missing(model):
    state = kfb.TrainState.from_keras(model)
    with pytest.raises(kfb.StructureMismatchError, match="batch_normalization/moving_mean"):
        state.apply_fn({"params": state.params}, BATCH[0])
    no_seed = {k: v for k, v in state.non_trainable.items() if k != "dropout"}
    state.apply_fn({"params": state.params, "non_trainable": no_seed}, BATCH[0])
    with pytest.raises(kfb.StructureMismatchError, match="dropout/seed_generator_state"):
        state.apply_fn({"params": state.params, "non_trainable": no_seed}, BATCH[0], training=True)
    with pytest.raises(kfb.StructureMismatchError, match="batch_stats"):
        state.apply_fn({"params": state.params}, BATCH[0], mutable=["batch_stats"])
