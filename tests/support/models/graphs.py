"""Functional and Sequential models: shared layers, several inputs and outputs, models inside models."""

from typing import Any

import keras
import numpy as np
from keras import layers


def sequential() -> keras.Model:
    """Sequential: a regularizer, moving statistics, dropout, a layer with a name."""
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


def lists() -> keras.Model:
    """Inputs, outputs, losses, weights and metrics as lists; metrics of equal names, one output without."""
    keras.utils.set_random_seed(3)
    inputs = [keras.Input((4,)), keras.Input((2,))]
    shared = layers.Dense(3, "tanh")
    hidden = layers.Concatenate()([shared(inputs[0]), layers.Dense(3)(inputs[1]), shared(inputs[0] * 2)])
    outputs = [layers.Dense(2)(hidden), layers.Dense(2)(hidden), layers.Dense(1, name="last")(hidden)]
    model = keras.Model(inputs, outputs)
    model.compile(
        "adam",
        ["mse", "mae", "mse"],
        loss_weights=[1.0, 0.5, 2.0],
        metrics=[["mae", "mae"], ["mae"], None],
    )
    return model


class Outer(keras.Model):
    """A subclassed model around a Sequential around a Functional one."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        x = keras.Input((4,))
        inner = keras.Model(x, layers.Dense(4, "relu")(x) + x, name="residual")
        self.stack = keras.Sequential([keras.Input((4,)), inner, layers.BatchNormalization(), inner])
        self.pair = (layers.Dense(4), {"dense": layers.Dense(4), "deep": [layers.Dense(4)]})
        self.dense = layers.Dense(1, name="stack")  # its name is that of another attribute

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.stack(x, training=training)
        x = self.pair[1]["dense"](self.pair[0](x))
        return self.dense(self.pair[1]["deep"][0](x))


def nested() -> keras.Model:
    """Models inside models; layers in tuples, dicts and lists; names that clash."""
    keras.utils.set_random_seed(4)
    model = Outer()
    model(np.zeros((1, 4)))
    model.compile("adam", "mse", metrics=["mae"])
    return model


def wrappers() -> keras.Model:
    """Layers inside wrappers, and attention with its private sublayers."""
    keras.utils.set_random_seed(5)
    x = keras.Input((5, 4))
    h = layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="sum")(x)
    h = layers.TimeDistributed(layers.Dense(4))(h)
    h = layers.MultiHeadAttention(2, 3, dropout=0.1)(h, h)
    h = layers.SpectralNormalization(layers.Dense(3))(layers.GlobalAveragePooling1D()(h))
    model = keras.Model(x, layers.Dense(1)(h))
    model.compile("adam", "mse")
    return model


@keras.saving.register_keras_serializable("tests")
class Largest(keras.metrics.Metric):
    """A metric of the user's own, which gave it no name."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.most = self.add_variable((), initializer="zeros", name="most")

    def update_state(self, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.most.assign(keras.ops.maximum(self.most, keras.ops.max(y_pred)))

    def result(self) -> Any:
        return self.most.value


def counted_metrics() -> keras.Model:
    """Metrics that Keras names by a counter, of which two are alike, and one that needs data first."""
    keras.utils.set_random_seed(6)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1, "sigmoid")])
    metrics = [
        keras.metrics.AUC(num_thresholds=5),
        keras.metrics.Precision(),
        Largest(),
        Largest(),
        keras.losses.Huber(),
        keras.metrics.F1Score(threshold=0.5),
    ]
    model.compile("adam", "binary_crossentropy", metrics=metrics)
    return model


def dict_of_one() -> keras.Model:
    """One output in a dict, with its targets in one."""
    keras.utils.set_random_seed(7)
    x = keras.Input((4,))
    model = keras.Model(x, {"out": layers.Dense(2)(x)})
    model.compile("adam", {"out": "mse"}, metrics={"out": ["mae"]})
    return model


class FreeTargets(keras.Model):
    """A Functional model whose own loss takes targets of another structure than its outputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Any:
        return keras.ops.mean((y["target"] - y_pred) ** 2 * y["weight"])


def free_targets() -> keras.Model:
    """A loss of its own, with targets of another structure than the outputs."""
    keras.utils.set_random_seed(8)
    x = keras.Input((4,))
    model = FreeTargets(x, layers.Dense(2)(x))
    model.compile("adam")
    return model


def two_layers(*, built: bool = True) -> keras.Model:
    """Not compiled."""
    keras.utils.set_random_seed(0)
    start = [keras.Input((6,))] if built else []
    return keras.Sequential([*start, layers.Dense(4, "relu"), layers.Dense(3, "softmax")])
