"""`ToNNX` where Flax's layers have a flag for statistics, and where each device has a shard of a weight."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from keras import layers

import keras_flax_bridge as kfb
from tests.support.capabilities import needs

X = np.arange(32, dtype="float32").reshape(8, 4) / 8


class Block(nnx.Module):
    """A module of Flax around layers of Keras."""

    def __init__(self):
        self.normalize = kfb.ToNNX(layers.BatchNormalization(), shape=(None, 4))
        self.dense = kfb.ToNNX(layers.Dense(2), shape=(None, 4))

    def __call__(self, x):
        return self.dense(self.normalize(x))


def test_the_flag_of_statistics_is_the_one_of_training():
    block = Block()
    block.set_attributes(use_running_average=False)
    assert not block.normalize.use_running_average
    assert not block.normalize.deterministic
    assert not np.allclose(block(X), Block()(X))
    block.eval()
    assert block.normalize.use_running_average
    with pytest.raises(ValueError, match="use_running_average"):
        block.dense.set_attributes(use_running_average=False)


@needs("nnx.view")
def test_a_view_takes_either_name_and_no_two_values():
    block = Block()
    assert not nnx.view(block, use_running_average=False).normalize.deterministic
    assert nnx.view(block, deterministic=True, use_running_average=True).normalize.use_running_average
    with pytest.raises(kfb.StructureMismatchError, match="the same of both"):
        nnx.view(block, deterministic=True, use_running_average=False)


def test_shards_of_weights_in_shard_map():
    """The first layer is cut by its units, the second by its inputs, and the parts are added."""
    first, second = (kfb.ToNNX(layers.Dense(n, use_bias=False), shape=(None, m)) for n, m in ((8, 4), (3, 8)))
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    states = [nnx.split(module) for module in (first, second)]
    places = P(None, "model"), P("model", None)

    def call(kernels, x):
        for (graphdef, state), kernel in zip(states, kernels, strict=True):
            module = nnx.merge(graphdef, state)
            module.kernel = nnx.Param(kernel)
            x = module(x)
        return jax.lax.psum(x, "model")

    shard_map = jax.shard_map(call, mesh=mesh, in_specs=(places, P()), out_specs=P())
    kernels = first.kernel.get_value(), second.kernel.get_value()
    np.testing.assert_allclose(jax.jit(shard_map)(kernels, X), second(first(X)), rtol=1e-5, atol=1e-6)
    assert second._held.layer.input_spec is not None  # which is checked elsewhere
    with pytest.raises(ValueError, match="incompatible"):
        second(X)


def test_a_model_of_shards_is_left_as_it_was():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(8, use_bias=False)(inputs))
    before = set(vars(model))
    module = kfb.ToNNX(model)
    graphdef, state = nnx.split(module)

    def call(kernel):
        shard = nnx.merge(graphdef, state)
        shard.dense.kernel = nnx.Param(kernel)
        return shard(X)

    kernel, mesh = module.dense.kernel.get_value(), Mesh(np.array(jax.devices()[:4]), ("model",))
    places = {"in_specs": P(None, "model"), "out_specs": P(None, "model")}
    outputs = jax.shard_map(call, mesh=mesh, **places)(kernel)
    np.testing.assert_allclose(outputs, model(X), rtol=1e-5, atol=1e-6)
    assert set(vars(model)) == before


def test_a_value_of_another_shape_is_refused_elsewhere():
    dense = kfb.ToNNX(layers.Dense(2, use_bias=False), shape=(None, 4))
    dense.kernel = nnx.Param(jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="shape"):
        dense(X)
