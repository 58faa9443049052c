"""Models that are built to be filled: what is stored comes in, what is not starts as Keras starts it."""

import keras
import numpy as np
import pytest
from keras import initializers, layers

import keras_flax_bridge as kfb
from keras_flax_bridge.keras_internals import filled


@keras.saving.register_keras_serializable("tests")
class Unstored(layers.Layer):
    """Has a weight that is not written, and one that is computed from another weight's first value."""

    def build(self, shape):
        self.stored = self.add_weight(shape=(64, 64), initializer=initializers.RandomNormal(seed=1))
        self.unstored = self.add_weight(shape=(64, 64), initializer=initializers.GlorotUniform(seed=2))
        self.doubled = self.add_weight(shape=(64, 64), initializer=self._double)

    def _double(self, shape, dtype=None):
        return 2 * keras.ops.convert_to_tensor(self.unstored)

    def call(self, x):
        return x @ (self.stored + self.unstored + self.doubled)

    def save_own_variables(self, store):
        store["0"] = self.stored

    def load_own_variables(self, store):
        self.stored.assign(store["0"])


def dense():
    first, last = (
        layers.Dense(width, kernel_initializer=initializers.GlorotUniform(seed=width)) for width in (16, 2)
    )
    model = keras.Sequential([keras.Input((8,)), first, layers.BatchNormalization(), last])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def values(model):
    return [np.asarray(variable) for variable in [*model.variables, *model.optimizer.variables]]


def test_a_weight_that_is_not_stored_starts_as_keras_starts_it(tmp_path):
    model = keras.Sequential([keras.Input((64,)), Unstored()])
    model.layers[0].stored.assign(np.full((64, 64), 3.0))
    model.save(tmp_path / "m.keras")
    got, expected = kfb.load_model(tmp_path / "m.keras"), keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(got.get_weights(), expected.get_weights(), strict=True):
        assert a.any()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["keras", "checkpoint"])
def test_loading_draws_no_random_values(tmp_path, monkeypatch, kind):
    model = dense()
    model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    path = tmp_path / ("m.keras" if kind == "keras" else "m")
    model.save(path) if kind == "keras" else kfb.save(path, kfb.TrainState.from_keras(model))
    drawn = []
    monkeypatch.setattr(initializers.VarianceScaling, "__call__", lambda *_, **__: drawn.append(1))
    loaded = kfb.load_model(path)
    assert not drawn
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_nothing_fills_is_the_model_that_keras_builds():
    config = dense().get_config()
    built = []

    def build():
        built.append(1)
        model = keras.Sequential.from_config(config)
        model.compile("adam", "mse")
        return model

    model = filled(build, lambda model: None)
    assert len(built) == 2
    for a, b in zip(model.get_weights(), build().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loaded_model_trains_as_the_model_that_keras_loads(tmp_path):
    model = dense()
    model.save(tmp_path / "m.keras")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)), rng.normal(size=(16, 2))
    trained = [kfb.load_model(tmp_path / "m.keras"), keras.saving.load_model(tmp_path / "m.keras")]
    for one in trained:
        one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(*map(values, trained), strict=True):
        np.testing.assert_array_equal(a, b)
