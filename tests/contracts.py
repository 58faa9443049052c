"""The table of models that every capability is tested on; one entry adds a model and its tests."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

RNG = np.random.default_rng(0)
SIZE = 8  # rows of one batch
STEPS = 50


class Row(NamedTuple):
    """A model and the data it trains on: as many rows as `STEPS` batches need."""

    name: str
    build: Callable[[], keras.Model]
    x: Any
    y: Any
    sample_weight: Any = None

    def batches(self, count: int = STEPS) -> Iterator[tuple]:
        """The first batches, in the order in which `fit` without shuffling takes them."""
        parts = tuple(part for part in (self.x, self.y, self.sample_weight) if part is not None)
        for i in range(count):
            yield keras.tree.map_structure(lambda a, i=i: a[i * SIZE : (i + 1) * SIZE], parts)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal((STEPS * SIZE, *shape)).astype("float32")


def labels(classes: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, classes, (STEPS * SIZE, *shape)).astype("int32")


def sequential() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, "relu", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, "softmax", name="head"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def functional() -> keras.Model:
    """Two inputs, a shared layer, a nested model, two outputs with one and the same metric."""
    keras.utils.set_random_seed(2)
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), layers.Dropout(0.2)])
    shared = layers.Dense(4, "relu")
    a, b = shared(inner(left)), shared(right)
    outputs = {"sum": layers.Dense(1, name="sum")(a + b), "difference": layers.Dense(1)(a - b)}
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        {"sum": "mse", "difference": "mae"},
        loss_weights={"sum": 1.0, "difference": 0.5},
        metrics={"sum": ["mae"], "difference": ["mae"]},
    )
    return model


class Block(layers.Layer):
    """A sublayer made in `build`, a variable whose name clashes with it, and a loss of its own."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self._dropout = layers.Dropout(0.2)

    def build(self, shape: tuple) -> None:
        self.dense = layers.Dense(self.units, "relu")
        self.dense.build(shape)
        self.scale = self.add_weight(shape=(self.units,), initializer="ones", name="dense")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any, training: bool | None = None) -> Any:
        self.calls.assign_add(1.0)
        y = self._dropout(self.dense(x) * self.scale, training=training)
        self.add_loss(1e-3 * keras.ops.mean(y**2))
        return y


class Subclassed(keras.Model):
    """Layers in a list and in a dict, an unnamed weight, weights shared by two attributes."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.blocks = [Block(4), Block(4)]
        self.heads = {"main.head": layers.Dense(2)}
        self.again = self.blocks[0].__class__(4)
        self.alias = self.again

    def build(self, shape: tuple) -> None:
        for layer in (*self.blocks, self.again, *self.heads.values()):
            layer.build((None, 4))
        self.shift = self.add_weight(shape=(2,), initializer="zeros")

    def call(self, x: Any, training: bool | None = None) -> Any:
        for layer in (*self.blocks, self.again):
            x = layer(x, training=training)
        return self.heads["main.head"](x) + self.shift


def subclassed() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = Subclassed()
    model.build((None, 4))
    model.compile("rmsprop", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
    return model


class OwnStep(Subclassed):
    """A model with its own `train_step`, in the signature of Keras on JAX."""

    def train_step(self, state: tuple, data: tuple) -> tuple:
        logs, state = super().train_step(state, data)
        return {**logs, "weight": keras.ops.sum(state[0][0])}, state


def own_step() -> keras.Model:
    keras.utils.set_random_seed(4)
    model = OwnStep()
    model.build((None, 4))
    model.compile("sgd", "mse")
    return model


def recurrent() -> keras.Model:
    """Masks from an embedding, dropout inside an RNN, a wrapper, sample weights."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 3, mask_zero=True),
            layers.Bidirectional(layers.LSTM(3, dropout=0.2, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(2, "softmax")),
        ]
    )
    model.compile("nadam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model


def scaled() -> keras.Model:
    """Mixed precision, loss scaling, a schedule, an average of the weights, accumulation."""
    keras.utils.set_random_seed(6)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, STEPS)
    inner = keras.optimizers.AdamW(
        schedule, use_ema=True, ema_overwrite_frequency=7, gradient_accumulation_steps=3, clipnorm=1.0
    )
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, "relu", dtype="mixed_bfloat16"),
            layers.GaussianNoise(0.1),
            layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=9), "mse")
    return model


SEQUENTIAL = Row("sequential", sequential, normal(6), labels(3))
ROWS = [
    SEQUENTIAL,
    Row(
        "functional",
        functional,
        {"left": normal(4), "right": normal(4)},
        {"sum": normal(1), "difference": normal(1)},
    ),
    Row("subclassed", subclassed, normal(4), normal(2)),
    Row("own_step", own_step, normal(4), normal(2)),
    Row("recurrent", recurrent, labels(9, 5), labels(2, 5), abs(normal(5))),
    Row("scaled", scaled, normal(6), normal(1)),
]
