"""A pickled `ToNNX` is the module once more, in another process too."""

import copy
import pickle
import subprocess
import sys

import cloudpickle
import jax
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb

X = np.ones((3, 4), "float32")


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that is built at its first call, with a frozen layer and adapters."""

    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense, self.dropout = layers.Dense(units), layers.Dropout(0.5)
        self.normalization = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.dropout(self.normalization(self.dense(x), training=training), training=training)

    def get_config(self):
        return {"units": self.units}


class Scaled(keras.Model):
    """A model without a config: Keras forgets its argument."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return self.factor * x


def frozen():
    model = Subclassed(3)
    model(X)
    model.dense.trainable = False
    return kfb.ToNNX(model)


def adapted():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Lambda(lambda x: 2 * x)])
    model.layers[0].enable_lora(2, lora_alpha=3.0)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    return kfb.ToNNX(model)


def statistics():
    layer = layers.Normalization()
    layer.adapt(np.arange(12.0).reshape(3, 4))
    return nnx.Sequential(kfb.ToNNX(layer), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))


def wrapped():
    module = kfb.ToNNX(layers.TimeDistributed(layers.Dense(2)), rngs=nnx.Rngs(0))
    module(X[None])
    return nnx.Sequential(lambda x: x[None], module)


def made():
    return kfb.ToNNX(lambda: layers.Dense(2), rngs=nnx.Rngs(0), shape=(None, 4))


def moved():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile("sgd", lambda y, z: (y - z) ** 2)
    module = kfb.ToNNX(model)
    kfb.TrainState.from_keras(model)
    return module


@pytest.mark.parametrize(
    "make", [frozen, adapted, statistics, wrapped, made, moved], ids=lambda f: f.__name__
)
def test_a_pickled_module_is_the_module(make):
    module = make()
    module.train()
    copies = [cloudpickle.loads(cloudpickle.dumps(module)), copy.deepcopy(module), nnx.clone(module)]
    assert str(nnx.state(copies[0])) == str(nnx.state(module))
    wanted = module(X)
    assert all(np.array_equal(one(X), wanted) for one in copies)
    again = pickle.loads(cloudpickle.dumps(copies[0]))
    module.eval(), again.eval()
    assert np.array_equal(again(X), module(X))


def test_a_layer_that_is_not_built_is_built_after_the_pickle():
    for given in ({}, {"rngs": nnx.Rngs(0)}):
        module = kfb.ToNNX(layers.Dense(2), **given)
        again = pickle.loads(pickle.dumps(module))
        assert again(X).shape == (3, 2)


def test_modules_of_one_layer_have_one_layer_after_the_pickle():
    layer = layers.Dense(2)
    layer.build((None, 4))
    pair = pickle.loads(pickle.dumps([kfb.ToNNX(layer), kfb.ToNNX(layer)]))
    assert nnx.graphdef(pair[0]) == nnx.graphdef(pair[1])
    assert jax.tree.map(np.add, *pair).kernel.shape == (4, 2)


def test_what_could_not_be_read_back_is_refused_when_it_is_pickled():
    class Odd(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    for layer in (Scaled(3.0), Odd(layers.Dense(2))):
        layer(X)
        with pytest.raises(kfb.UnsupportedLayerError, match="get_config"):
            pickle.dumps(kfb.ToNNX(layer))


@pytest.mark.slow
def test_a_pickle_is_read_in_a_process_that_does_not_know_the_class(tmp_path):
    class Local(layers.Layer):
        def __init__(self, units=2, **kwargs):
            super().__init__(**kwargs)
            self.units, self.dense = units, layers.Dense(units)

        def call(self, x):
            return keras.ops.relu(self.dense(x))

    layer = Local(3)
    layer(X)
    module = kfb.ToNNX(keras.Sequential([keras.Input((4,)), layer]))
    (tmp_path / "module").write_bytes(cloudpickle.dumps((module, X)))
    program = (
        "import cloudpickle, sys, numpy as np\n"
        "module, x = cloudpickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[1] + '.npy', module(x))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "module")], check=True)
    assert np.array_equal(np.load(tmp_path / "module.npy"), module(X))
