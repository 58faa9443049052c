"""`TrainState.abstract`: what is not a weight is computed while a model is built."""

import random

import jax
import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_flax_bridge as kfb
from keras_flax_bridge.keras_internals.seeds import random_states
from keras_flax_bridge.tree.paths import flatten_tree

X = np.ones((2, 4), "float32")


class Info:
    def __init__(self, array):
        self.array = array


class Holding(keras.Model):
    """A model that keeps an array that it made, and has no config."""

    def __init__(self, hold, get):
        super().__init__()
        self.inner = layers.Dense(2)
        self.get = get
        self.held = hold(ops.arange(4, dtype="float32") + 1.0)

    def call(self, x):
        return self.inner(x * self.get(self.held))


HELD = {
    "attribute": (lambda a: a, lambda h: h),
    "list": (lambda a: [a], lambda h: h[0]),
    "tuple": (lambda a: (a, 1), lambda h: h[0]),
    "dict": (lambda a: {"a": a}, lambda h: h["a"]),
    "object": (Info, lambda h: h.array),
    "closure": (lambda a: lambda: a, lambda h: h()),
    "from numpy": (lambda a: ops.convert_to_tensor(np.arange(1.0, 5.0)), lambda h: h),
}


@pytest.mark.parametrize("name", HELD)
def test_arrays_that_a_layer_makes_are_kept(name, tmp_path):
    def build():
        keras.utils.set_random_seed(0)
        model = Holding(*HELD[name])
        model(X)
        model.compile("adam", "mse")
        return model

    model = build()
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    state = kfb.restore(tmp_path / "one", kfb.TrainState.abstract(build))
    np.testing.assert_array_equal(state.apply_fn({"params": state.params}, X), model(X))


class Table(layers.Layer):
    def build(self, shape):
        values = ops.convert_to_numpy(ops.sin(ops.arange(shape[-1], dtype="float32")))
        constant = keras.initializers.Constant(values)
        self.table = self.add_weight(shape=(shape[-1],), initializer=constant, trainable=False, name="table")
        self.scale = keras.Variable(ops.where(ops.arange(shape[-1]) > 3, 1.0, 0.5), trainable=False)

    def call(self, x):
        return x * self.scale + self.table


def adapted(x):
    layer = layers.Normalization()
    layer.adapt(np.arange(8.0).reshape(2, 4))
    return layer(x)


VALUES = {
    "comparison": lambda x: layers.Dense(4)(x) if ops.equal(x.shape[-1], 4) else x,
    "numbers": lambda x: layers.Dropout(float(ops.linspace(0.0, 0.5, 3)[1]))(x),
    "sizes": lambda x: layers.Dense(int(ops.prod(ops.convert_to_tensor([2, 2]))))(x),
    "tables": lambda x: Table()(x),
    "statistics": adapted,
    "random draws": lambda x: layers.Dense(int(keras.random.randint((), 3, 4, seed=1)))(x),
}


@pytest.mark.parametrize("name", VALUES)
def test_numbers_that_a_model_computes_are_known(name):
    def build():
        inputs = keras.Input((4,))
        model = keras.Model(inputs, VALUES[name](inputs))
        model.compile("sgd", "mse")
        return model

    abstract, state = kfb.TrainState.abstract(build), kfb.TrainState.from_keras(build())
    assert {p: (a.shape, a.dtype) for p, a in flatten_tree(abstract).items()} == {
        p: (a.shape, a.dtype) for p, a in flatten_tree(state).items()
    }


class Counting(keras.initializers.Initializer):
    calls = 0

    def __call__(self, shape, dtype=None):
        Counting.calls += 1
        return ops.zeros(shape, dtype)


def large():
    model = keras.Sequential([keras.Input((4096,)), layers.Dense(4096, kernel_initializer=Counting())])
    model(np.zeros((1, 4096), "float32"))  # as subclassed models are built
    model.compile("adam", "mse")
    return model


def test_no_initializer_runs_and_weights_take_no_memory():
    before = sum(array.nbytes for array in jax.live_arrays())
    state = kfb.TrainState.abstract(large)
    assert Counting.calls == 0
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1 << 20
    assert state.opt_state["momentums"]["dense"]["kernel"].shape == (4096, 4096)


def test_an_array_that_depends_on_weights_is_not_left_as_a_tracer():
    def build():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
        model.compile("sgd", "mse")
        model.seen = [model(X), (model.weights[0] + 1,)]
        return model

    seen = kfb.TrainState.abstract(build).apply_fn.model.seen
    assert seen == [jax.ShapeDtypeStruct((2, 2), "float32"), (jax.ShapeDtypeStruct((4, 2), "float32"),)]


def test_random_states_are_as_before():
    keras.random.uniform((2,))  # makes Keras's own generator
    rewind = random_states()
    wanted = keras.random.uniform((2,)), np.random.rand(), random.random()
    rewind()
    kfb.TrainState.abstract(large)
    got = keras.random.uniform((2,)), np.random.rand(), random.random()
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_code_that_needs_the_values_of_weights_is_refused():
    def build():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
        model.get_weights()
        return model

    with pytest.raises(kfb.UnsupportedLayerError, match="model_fn: got code that needs the values"):
        kfb.TrainState.abstract(build, optimizer="sgd")
