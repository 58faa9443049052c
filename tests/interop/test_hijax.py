"""Modules whose variables are `hijax` types of JAX, as in the newest Flax."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb
from tests.support.capabilities import needs

X = np.arange(32, dtype="float32").reshape(8, 4) / 8


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()])


def loss_of(module):
    return jnp.mean((module(X) - 1) ** 2)


@needs("nnx.with_vars")
@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_gradients_and_statistics_are_those_of_other_variables(jit):
    usual = kfb.ToNNX(network())
    usual.train()
    wanted, gradients = nnx.value_and_grad(loss_of)(usual)
    with nnx.var_defaults(hijax=True):
        module = kfb.ToNNX(network())
        module.train()

        @jit
        def step():
            graphdef, params, rest = nnx.split(module, nnx.Param, ...)
            params = nnx.with_vars(params, hijax=False)
            return jax.value_and_grad(lambda params: loss_of(nnx.merge(graphdef, params, rest)))(params)

        value, found = step()
    assert module.batch_normalization.moving_mean.hijax
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    both = [
        (gradients, found),
        *((nnx.state(usual, kind), nnx.state(module, kind)) for kind in (nnx.Param, nnx.BatchStat)),
    ]
    for one, two in both:
        one, two = (jax.tree.leaves(nnx.with_vars(tree, hijax=False)) for tree in (one, two))
        assert len(one) == len(two) > 0
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, two, strict=True))
    assert not np.allclose(module.batch_normalization.moving_mean[...], 0)
