"""Weights, slots and checkpoints of whole models, from Keras to native Flax and back."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers as L

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.arrays import Arrays

floats = Arrays().floats
migrate = kfb.migrate
pytestmark = pytest.mark.usefixtures("numpy_weights")


def compiled():
    keras.utils.set_random_seed(1)
    x = keras.Input((5, 4))
    y = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    y = L.BatchNormalization()(L.Dropout(0.2)(y))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(y)))
    model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module")
def trained():
    model = compiled()
    model.fit(floats(6, 5, 4), np.zeros((6, 2)), verbose=0)
    return model


X = floats(3, 5, 4)


def ejected(model):
    scope = {"__name__": "ejected"}
    exec(migrate.to_source(model), scope)
    module = scope["Model"](rngs=nnx.Rngs(3))
    module.eval()
    return module


@pytest.mark.slow
def test_one_checkpoint_reads_as_a_native_module(trained, tmp_path):
    kfb.save(tmp_path / "keras", kfb.TrainState.from_keras(trained))
    for module in (migrate.to_nnx(compiled()), ejected(trained)):
        assert kfb.restore(tmp_path / "keras", module) is module
        np.testing.assert_allclose(module(X), trained(X), atol=1e-6)


@pytest.mark.slow
def test_a_saved_native_module_reads_as_keras(trained, tmp_path):
    kfb.save(tmp_path / "native", migrate.to_nnx(trained))
    model, weights = compiled(), "^(params|non_trainable)/(?!.*seed)"
    kfb.restore(tmp_path / "native", model, include=weights)
    for a, b in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    module = ejected(trained)
    kfb.restore(tmp_path / "native", module)
    np.testing.assert_allclose(module(X), trained(X), atol=1e-6)


@pytest.mark.slow
def test_another_module_is_refused(trained, tmp_path):
    kfb.save(tmp_path / "keras", kfb.TrainState.from_keras(trained))
    with pytest.raises(kfb.StructureMismatchError, match="missing"):
        kfb.restore(tmp_path / "keras", nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


@pytest.mark.slow
def test_slots_move_with_the_weights(trained):
    state = kfb.TrainState.from_keras(trained)
    module = migrate.to_nnx(trained)
    slots = migrate.slots_to_nnx(module, state)
    assert jax.tree.structure(slots["momentums"]) == jax.tree.structure(nnx.state(module, nnx.Param))
    back = migrate.slots_to_keras(module, slots, state)
    for a, b in zip(jax.tree.leaves(back.opt_state), jax.tree.leaves(state.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_state_goes_back_to_keras(trained):
    module = migrate.to_nnx(trained)
    module.dense.bias[...] += 1
    state = kfb.TrainState.from_keras(trained)
    new = migrate.to_keras(module, state)
    np.testing.assert_array_equal(new.params["dense"]["bias"], state.params["dense"]["bias"] + 1)
    same = flatten_tree(state.non_trainable)
    for path, leaf in flatten_tree(new.non_trainable).items():
        np.testing.assert_array_equal(leaf, same[path])


@pytest.mark.slow
def test_five_steps_of_adam_on_both_sides():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((4,)), L.Dense(8, "relu"), L.BatchNormalization(), L.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    module = migrate.to_nnx(model)
    module.train()
    optimizer = nnx.Optimizer(module, kfb.to_optax(model.optimizer), wrt=nnx.Param)
    x, y = floats(40, 4), floats(40, 1)

    @nnx.jit
    def step(module, optimizer, x, y):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(module)
        optimizer.update(module, grads)

    for i in range(5):
        batch = slice(8 * i, 8 * i + 8)
        step(module, optimizer, x[batch], y[batch])
        model.train_on_batch(x[batch], y[batch])
    other = migrate.to_keras(module, keras.models.clone_model(model))
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
