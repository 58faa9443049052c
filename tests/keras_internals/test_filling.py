"""Models that are built to be filled: what is stored comes in, what is not starts as Keras starts it."""

import random

import keras
import numpy as np
import pytest
from keras import initializers, layers
from keras.src.backend.common import global_state

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import model_configs
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


class Square(layers.Layer):
    """Has one stored weight, whose first value is known."""

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(4, 4), initializer=initializers.RandomNormal(seed=1), name="kernel"
        )
        self.other()

    def other(self):
        """What else it makes of the first value."""

    def call(self, x):
        return x @ self.kernel

    def save_own_variables(self, store):
        store["kernel"] = self.kernel

    def load_own_variables(self, store):
        self.kernel.assign(store["kernel"])


@keras.saving.register_keras_serializable("tests")
class Assigned(Square):
    """A weight of zeros, which is assigned from the first value of another."""

    def other(self):
        self.norm = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.norm.assign(keras.ops.sum(self.kernel * self.kernel))

    def call(self, x):
        return x @ self.kernel / self.norm


@keras.saving.register_keras_serializable("tests")
class Attribute(Square):
    """A number of Python's, from the first value of a weight."""

    def other(self):
        self.norm = float(np.abs(self.kernel.numpy()).max())

    def call(self, x):
        return x @ self.kernel / self.norm


@keras.saving.register_keras_serializable("tests")
class Rows(Square):
    """Only some rows are stored; the others stay as they started."""

    def save_own_variables(self, store):
        store["kernel"] = np.asarray(self.kernel)[:2]

    def load_own_variables(self, store):
        self.kernel.assign(np.concatenate([store["kernel"], np.asarray(self.kernel)[2:]]))


@keras.saving.register_keras_serializable("tests")
class Global(Square):
    """Numbers from every global generator, which no file holds."""

    def other(self):
        self.numbers = [random.random(), np.random.normal(), float(keras.random.normal(()))]
        self.raw = keras.Variable("uniform", shape=(2,))

    def call(self, x):
        return x @ self.kernel + sum(self.numbers) + keras.ops.sum(self.raw)


@keras.saving.register_keras_serializable("tests")
class Unbuilt(keras.Model):
    """Keras saves no shape for it: its layers are built when it is first called."""

    def __init__(self, **options):
        super().__init__(**options)
        self.drop, self.last = layers.Dropout(0.5), layers.Dense(2)

    def call(self, x, training=False):
        return self.last(self.drop(x, training=training))


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


ODD = {
    "assigned": Assigned,
    "attribute": Attribute,
    "rows": Rows,
    "global": Global,
    "dropout": lambda: layers.Dropout(0.5),
    "wrapper": lambda: layers.SpectralNormalization(layers.Dense(4)),
    "wrapper of what is not stored": lambda: layers.TimeDistributed(Global()),
    "rnn": lambda: layers.GRU(4, dropout=0.5),
    "generator": lambda: layers.Dense(
        4, kernel_initializer=initializers.RandomNormal(seed=keras.random.SeedGenerator(3))
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_stored_is_as_keras_loads_it(tmp_path, name):
    model = keras.Sequential([keras.Input((3, 4)), ODD[name]()])
    model.save(tmp_path / "m.keras")
    require_equal(tmp_path / "m.keras", np.ones((2, 3, 4), np.float32))


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_model_without_a_shape_is_as_keras_loads_it(tmp_path):
    Unbuilt().save(tmp_path / "m.keras")
    require_equal(tmp_path / "m.keras", np.ones((2, 4), np.float32))


def require_equal(path, x):
    """Both loads give the same model, and draw the same numbers from the global generators."""
    results = []
    for load in (keras.saving.load_model, kfb.load_model):
        keras.utils.set_random_seed(7)
        global_state.set_global_attribute("global_seed_generator", None)  # an older Keras leaves it as it is
        model = load(path)
        outputs = model(x), model(x, training=True), keras.random.normal((2,))
        results.append([*outputs, random.random(), np.random.normal(), *model.variables])
    for expected, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", [Assigned, Attribute])
def test_what_is_computed_from_a_first_value_survives_a_checkpoint(tmp_path, kind):
    model = keras.Sequential([keras.Input((4,)), kind()])
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(np.full((4, 4), 3.0))
    kfb.save(tmp_path / "m", kfb.TrainState.from_keras(model))
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(kfb.load_model(tmp_path / "m")(x), model(x))


def test_a_model_with_seeds_is_built_once(tmp_path, monkeypatch):
    keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dropout(0.5)]).save(tmp_path / "m.keras")
    built, build = [], model_configs.build
    monkeypatch.setattr(model_configs, "build", lambda *args: built.append(1) or build(*args))
    kfb.load_model(tmp_path / "m.keras")
    assert len(built) == 1


def test_variables_of_a_filled_model_have_the_class_that_keras_gives(tmp_path):
    dense().save(tmp_path / "m.keras")
    assert {type(variable) for variable in kfb.load_model(tmp_path / "m.keras").variables} == {keras.Variable}


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


@pytest.mark.slow
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
