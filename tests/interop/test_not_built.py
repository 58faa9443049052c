"""A `ToNNX` of a layer that is not built: what works, and what names both remedies."""

import inspect

import keras
import numpy as np
import optax
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb

X = np.ones((4, 3), "float32")
TAKES_GRAPH = (
    "graph" in inspect.signature(nnx.Optimizer.__init__).parameters
)  # not in every Flax with tree mode
REMEDIES = "Call the module once.*pass shape="


class Net(nnx.Module):
    """A newcomer's first module."""

    def __init__(self, rngs, **options):
        self.keras = kfb.ToNNX(layers.Dense(8), rngs=rngs, **options)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.keras(x))


def loss(net):
    return (net(X) ** 2).mean()


def trains(net):
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    before = np.asarray(net.keras.kernel.get_value())
    optimizer.update(net, nnx.grad(loss)(net))
    return not np.array_equal(before, net.keras.kernel.get_value())


@pytest.mark.parametrize("options", [{}, {"graph": False}] if TAKES_GRAPH else [{}])
def test_an_optimizer_of_a_layer_that_is_not_built_is_refused(options):
    with pytest.raises(kfb.NotBuiltError, match=REMEDIES):
        nnx.Optimizer(Net(nnx.Rngs(0)), optax.sgd(0.1), wrt=nnx.Param, **options)


def test_both_remedies_work():
    called = Net(nnx.Rngs(0))
    called(X)
    assert trains(called)
    assert trains(Net(nnx.Rngs(0), shape=(None, 3)))


def test_nnx_jit_builds_it():
    net = Net(nnx.Rngs(0))
    nnx.jit(lambda net, x: net(x))(net, X)
    assert trains(net)


def test_what_waits_for_no_variables_is_not_refused():
    class Twice(layers.Layer):
        def call(self, x):
            return 2 * x

    net = nnx.Sequential(kfb.ToNNX(keras.Sequential([Twice()])), nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(net, nnx.grad(loss)(net))
    nnx.Optimizer(Net(nnx.Rngs(0)), optax.sgd(0.1), wrt=nnx.LoRAParam)
