"""TrainState.assign_to: what is written into a model, and into its optimizer."""

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from tests.support.cases import equal
from tests.support.models import stateful
from tests.support.models.graphs import two_layers
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


def weights(state):
    return state.params, state.non_trainable, state.opt_state, state.metrics


def test_assign_to_a_second_build_takes_everything(trained):
    _, state = trained
    layers.Dropout(0.5)  # moves Keras's counters of names
    other = contracts.SEQUENTIAL.build()
    other.train_on_batch(*BATCH)
    state.assign_to(other)
    assert equal(weights(kfb.TrainState.from_keras(other)), weights(state))


def test_assign_to_is_all_or_nothing(trained):
    model, state = trained
    state.assign_to(model)
    before = weights(kfb.TrainState.from_keras(model))
    broken = {**state.params, "head": {"kernel": jnp.ones((5, 4)), "bias": state.params["head"]["bias"] + 1}}
    with pytest.raises(kfb.StructureMismatchError) as error:
        state.replace(params=broken).assign_to(model)
    assert "params/head/kernel  got float32[5,4], expected float32[5,3]" in str(error.value)
    assert equal(weights(kfb.TrainState.from_keras(model)), before)


def test_assign_to_writes_weights_alone_where_nothing_trains(trained):
    _, state = trained
    other = keras.models.clone_model(contracts.SEQUENTIAL.build())
    plain = keras.Sequential([keras.Input((6,)), *other.layers])
    state.assign_to(plain)
    assert equal(kfb.TrainState.from_keras(plain, optimizer="sgd").params, state.params)


def test_assign_to_gives_slots_to_a_given_optimizer():
    model, optimizer = two_layers(), keras.optimizers.Adam()
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    step = kfb.make_train_step(model, optimizer=optimizer, loss="sparse_categorical_crossentropy")
    state, _ = step(state, BATCH)
    state.assign_to(model, optimizer=optimizer)
    assert int(optimizer.iterations.value) == 1
    assert np.any(optimizer._momentums[0].numpy())


def test_optax_slots_have_no_place_in_a_keras_optimizer(model):
    state = kfb.TrainState.from_keras(model, optimizer=optax.sgd(0.1))
    with pytest.warns(UserWarning, match="trained by optax") as warned:
        state.assign_to(model)
    assert warned[0].filename == __file__  # the line that assigns


@pytest.mark.slow
def test_statistics_that_a_layer_keeps_come_from_the_state():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model, other = stateful.adapted(), stateful.adapted(shift=0.0)
    state, wanted = kfb.TrainState.from_keras(model), model.predict(x, verbose=0)
    assert not np.allclose(other.predict(x, verbose=0), wanted)
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    abstract = kfb.TrainState.abstract(lambda: stateful.adapted(shift=0.0))
    outputs = [
        kfb.make_predict_step(other)(state, x),
        kfb.TrainState.from_keras(other).apply_fn(variables, x),
        abstract.apply_fn(variables, x),
    ]
    for y in outputs:
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(other.predict(x, verbose=0), wanted)  # the calls left nothing behind in it
    state.assign_to(other)
    np.testing.assert_allclose(other.predict(x, verbose=0), wanted, rtol=1e-6, atol=1e-6)
