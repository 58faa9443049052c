"""Layers that compute the same have one key; whatever a call can read makes two."""

import functools
import types

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_flax_bridge import keras_internals


def key(layer, shape=(None, 8, 4)):
    if not layer.built:
        layer.build(shape)
    params, others = keras_internals.collect_layer(layer)
    return keras_internals.architecture(layer, params + others)


class Holds(keras.layers.Layer):
    """Reads an attribute in its call, and has no config."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def call(self, x):
        return x


class Named(keras.Model):
    """Its outputs have the names of its layers."""

    def __init__(self, *names):
        super().__init__()
        self.heads = [layers.Dense(2, name=name) for name in names]

    def build(self, shape):
        for head in self.heads:
            head.build(shape)
        self.built = True

    def call(self, x):
        return {head.name: head(x) for head in self.heads}


def graph(*, swapped=False, rate=0.1, axis=-1, tied=False):
    """A functional model with operations, a dropout, two layers of one kind and a nested model."""
    inputs = keras.Input((8, 4))
    a, b = layers.Dense(4), layers.Dense(4)
    x, y = a(inputs), (a if tied else b)(inputs)
    if tied:
        b(inputs)
    x, y = (y, x) if swapped else (x, y)
    z = ops.softmax(ops.tanh(x) - y, axis=axis)
    inner = keras.Sequential([keras.Input((8, 4)), layers.LayerNormalization(), layers.Dropout(rate)])
    return keras.Model(inputs, {"out": inner(z), "sum": x + 2.0 * y, "b": b(inputs)})


def compiled():
    model = graph()
    model.compile("adam", {"out": "mse"}, metrics={"out": ["mae"]})
    return model


def trained(**changes):
    dense = layers.Dense(4)
    dense.build((None, 8, 4))
    for name, value in changes.items():
        setattr(dense, name, value)
    return dense


def adapted(alpha):
    dense = trained()
    dense.enable_lora(2, lora_alpha=alpha)
    return dense


def quantized(mode):
    dense = trained()
    dense.quantize(mode)
    return dense


def attention():
    layer = layers.MultiHeadAttention(2, 3, dropout=0.1)
    layer.build((None, 8, 4), (None, 8, 4))
    return layer


def linked(length):
    """An object with one inside, and so on."""
    return types.SimpleNamespace(next=linked(length - 1)) if length else None


def called():
    dense = layers.Dense(4)
    dense(np.ones((3, 8, 4)))
    return dense


def reduced(factor):
    return Holds(lambda x: factor * x)


class Weighted(keras.layers.Layer):
    """Keeps the initializer of its weight."""

    def __init__(self):
        super().__init__()
        self.scale_initializer = keras.initializers.RandomNormal()

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer=self.scale_initializer)

    def call(self, x):
        return x * self.scale


SAME = {
    "the initializer of a weight": (Weighted,) * 2,
    "a layer": (lambda: layers.Dense(4, "relu", kernel_regularizer="l2", dtype="mixed_bfloat16"),) * 2,
    "a layer that was called": (called, lambda: layers.Dense(4)),
    "an automatic name": (lambda: layers.Dense(4), lambda: layers.Dense(4, name="dense_77")),
    "seeds": (lambda: layers.Dropout(0.3, seed=1), lambda: layers.Dropout(0.3, seed=1)),
    "a recurrent layer": (lambda: layers.Bidirectional(layers.GRU(3, dropout=0.2)),) * 2,
    "attention": (attention,) * 2,
    "a graph": (graph, graph),
    "a compiled graph": (graph, compiled),
    "a subclassed model": (lambda: Named("left", "right"),) * 2,
    "a plain object": (lambda: Holds(types.SimpleNamespace(rate=2)),) * 2,
    "arrays": (lambda: Holds([np.arange(3), {"mask": np.eye(2)}]),) * 2,
    "jax arrays": (lambda: Holds(ops.arange(3)),) * 2,
    "a partial function": (lambda: Holds(functools.partial(ops.softmax, axis=1)),) * 2,
    "a set": (lambda: Holds({"a", "b"}),) * 2,
    "a quantized layer": (lambda: quantized("int8"),) * 2,
}


OTHER = {
    "units": (layers.Dense(4), layers.Dense(5)),
    "an activation": (layers.Dense(4, "relu"), layers.Dense(4, "gelu")),
    "a regularizer": (layers.Dense(4, kernel_regularizer="l1"), layers.Dense(4, kernel_regularizer="l2")),
    "a factor": (
        layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1)),
        layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.2)),
    ),
    "a constraint": (layers.Dense(4), layers.Dense(4, kernel_constraint="non_neg")),
    "a class": (layers.LSTM(4), layers.LSTM(4, unroll=True)),
    "a rate": (layers.Dropout(0.1), layers.Dropout(0.2)),
    "a dtype policy": (layers.Dense(4), layers.Dense(4, dtype="mixed_bfloat16")),
    "frozen": (trained(), trained(trainable=False)),
    "frozen statistics": (layers.BatchNormalization(), layers.BatchNormalization(trainable=False)),
    "an activity regularizer": (layers.Dense(4), layers.Dense(4, activity_regularizer="l2")),
    "an attribute that was changed": (trained(), trained(activation=keras.activations.relu)),
    "a scale of LoRA": (adapted(1.0), adapted(2.0)),
    "a quantized layer": (trained(), quantized("int8")),
    "names that a call may read": (Named("left", "right"), Named("right", "left")),
    "operands": (graph(), graph(swapped=True)),
    "an argument in a graph": (graph(), graph(axis=1)),
    "a rate in a nested model": (graph(), graph(rate=0.2)),
    "a layer that is called twice": (graph(), graph(tied=True)),
    "a number": (Holds(1), Holds(1.0)),
    "the sign of zero": (Holds(0.0), Holds(-0.0)),
    "an array": (Holds(np.arange(3)), Holds(np.arange(3)[::-1])),
    "an initializer that a call may use": (
        Holds(keras.initializers.RandomNormal()),
        Holds(keras.initializers.RandomNormal()),
    ),
    "a mask": (
        Holds(types.SimpleNamespace(a=np.ma.array([1, 2], mask=[0, 1]))),
        Holds(types.SimpleNamespace(a=np.ma.array([1, 2], mask=[1, 0]))),
    ),
    "a dtype": (Holds(np.arange(3, dtype="int32")), Holds(np.arange(3, dtype="int16"))),
    "functions of one code": (reduced(2), reduced(3)),
    "objects of other libraries": (Holds(memoryview(b"a")), Holds(memoryview(b"a"))),
    "aliases": (
        Holds(types.SimpleNamespace(a=(twin := [1]), b=twin)),
        Holds(types.SimpleNamespace(a=[1], b=[1])),
    ),
    "classes": (Holds(layers.Dense), Holds(layers.Conv1D)),
    "objects that are nested too deep": (Holds(linked(400)), Holds(linked(400))),
    "order": (Holds({"a": 1, "b": 2}), Holds({"b": 2, "a": 1})),
}


@pytest.mark.parametrize("name", SAME)
def test_layers_that_compute_the_same_have_one_key(name):
    one, two = (key(make()) for make in SAME[name])
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize("name", OTHER)
def test_what_a_call_can_read_makes_another_key(name):
    one, two = OTHER[name]
    assert key(one) == key(one)
    assert key(one) != key(two)
