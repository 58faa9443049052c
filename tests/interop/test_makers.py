"""`ToLinen` and `ToNNX` of a function that makes the layer: no layer needs a config."""

import jax
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers, ops

import keras_flax_bridge as kfb

X = np.ones((2, 4), "float32")


class NoConfig(keras.Model):
    def __init__(self, data):
        super().__init__()
        self.held = [ops.convert_to_tensor(data)]
        self.inner = layers.Dense(2)
        self.drop = layers.Dropout(0.5)

    def call(self, x):
        return self.drop(self.inner(x * self.held[0]))


def unbuilt():
    return NoConfig(np.arange(4.0))


def built():
    model = unbuilt()
    model(X)
    model.inner.enable_lora(2)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("make", [built, unbuilt])
def test_linen_initializes_from_the_key(make):
    module = kfb.ToLinen(make)
    one, two = module.init(jax.random.key(0), X), jax.jit(module.init)(jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = module.init(jax.random.key(1), X)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    whole = kfb.ToLinen(built()).from_keras_values()
    if make is built:
        assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, whole)
        assert jax.tree.map(np.shape, module.from_keras_values()) == jax.tree.map(np.shape, whole)
    assert module.apply(one, X).shape == (2, 2)


@pytest.mark.parametrize("make", [built, unbuilt])
def test_nnx_takes_values_or_draws_them(make):
    drawn = kfb.ToNNX(make, rngs=nnx.Rngs(0))
    assert drawn(X).shape == (2, 2)
    assert float(np.std(drawn.inner.kernel[...])) > 0
    module = kfb.ToNNX(make, shape=(None, 4))
    np.testing.assert_array_equal(module(X), module._held.layer(X))


@pytest.mark.slow
def test_lora_of_a_layer_is_drawn_too():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.MultiHeadAttention(1, 2)(inputs[:, None], inputs[:, None]))
    model.layers[-1]._query_dense.enable_lora(2)
    drawn = kfb.ToLinen(model).init(jax.random.key(0), X)
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, kfb.ToLinen(model).from_keras_values())


MISUSE = {
    "no layer": (lambda: 3, "a function that returns a int"),
    "before": ((lambda model: lambda: model)(built()), "existed before and holds values"),
    "a class": (NoConfig, "got a type"),
}


@pytest.mark.parametrize("name", MISUSE)
@pytest.mark.parametrize(
    "wrap", [lambda f: kfb.ToLinen(f).init(jax.random.key(0), X), lambda f: kfb.ToNNX(f, rngs=nnx.Rngs(0))]
)
def test_misuse_is_explained(name, wrap):
    make, message = MISUSE[name]
    with pytest.raises(kfb.StructureMismatchError, match=message):
        wrap(make)
