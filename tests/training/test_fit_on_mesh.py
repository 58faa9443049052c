"""kfb.fit, kfb.evaluate and kfb.predict on a mesh: Keras's numbers, variables that stay by their rules."""

import jax
import keras
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import keras_flax_bridge as kfb

X = np.random.default_rng(0).normal(size=(36, 8)).astype("float32")
Y = X.sum(1, keepdims=True)
RULES = [("dense/kernel", P(None, "model"))]
GIVEN = {"batch_size": 16, "epochs": 2, "verbose": 0, "validation_data": (X[:16], Y[:16])}


def build():
    keras.utils.set_random_seed(1)
    body = [keras.layers.Dense(8), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,)), *body])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))


@pytest.fixture(scope="module")
def fitted(mesh):
    model = build()
    return model, kfb.fit(model, X, Y, **GIVEN, mesh=mesh, rules=RULES)


@pytest.mark.slow
def test_the_history_is_that_of_fit(fitted):
    wanted = build().fit(X, Y, **GIVEN).history
    for name, values in fitted[1].history.items():
        # sums over a batch are grouped by device
        np.testing.assert_allclose(values, wanted[name], rtol=2e-5)


@pytest.mark.slow
def test_variables_and_slots_lie_by_the_rules(fitted):
    model = fitted[0]
    kernels = [v for v in model.optimizer.variables if v.shape == (8, 8)]
    assert len(kernels) == 2
    for variable in (model.layers[0].kernel, *kernels):
        assert variable.value.sharding.spec == P(None, "model")


@pytest.mark.slow
def test_evaluation_and_prediction(fitted, mesh):
    model = fitted[0]
    wanted = model.evaluate(X, Y, verbose=0)
    np.testing.assert_allclose(kfb.evaluate(model, X, Y, verbose=0, mesh=mesh), wanted, rtol=2e-5)
    assert kfb.evaluate(model, X, Y, verbose=0, return_dict=True) == model.evaluate(
        X, Y, verbose=0, return_dict=True
    )
    wanted = model.predict(X, verbose=0)
    np.testing.assert_allclose(kfb.predict(model, X, verbose=0, mesh=mesh), wanted, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(kfb.predict(model, X, verbose=0), wanted)


@pytest.mark.slow
def test_a_run_on_a_mesh_is_resumed(mesh, tmp_path):
    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kfb.fit(build(), X, Y, **GIVEN, mesh=mesh, rules=RULES, checkpoint=tmp_path, callbacks=[Stops()])
    model = build()
    history = kfb.fit(model, X, Y, **GIVEN, mesh=mesh, rules=RULES, checkpoint=tmp_path)
    straight = build()
    wanted = kfb.fit(straight, X, Y, **GIVEN, mesh=mesh, rules=RULES)
    assert history.history == wanted.history
    jax.tree.map(np.testing.assert_array_equal, model.get_weights(), straight.get_weights())


def test_rules_without_a_mesh_are_an_error():
    with pytest.raises(kfb.ArgumentError, match="mesh="):
        kfb.fit(build(), X, Y, verbose=0, rules=RULES)


def test_a_distribution_of_keras_beside_it_is_an_error(mesh):
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=jax.devices()[:2]))
    try:
        with pytest.raises(kfb.ArgumentError, match="distribution"):
            kfb.predict(build(), X, verbose=0, mesh=mesh)
    finally:
        keras.distribution.set_distribution(None)
