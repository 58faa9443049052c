"""Subclassed layers and models: lazy, built by hand, tied, with steps, losses and metrics of their own."""

from typing import Any

import jax
import keras
import numpy as np
from keras import layers, ops


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
        self.add_loss(1e-3 * ops.mean(y**2))
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


def subclassed(kind: type = Subclassed, seed: int = 10) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = kind()
    model.build((None, 4))
    model.compile("rmsprop", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError()])
    return model


class Lazy(keras.Model):
    """A model that has no variables before it sees data, and whose call takes no `training`."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = [layers.Dense(3, "tanh") for _ in range(2)]
        self.out = layers.Dense(2)

    def call(self, x: Any) -> Any:
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)


def lazy() -> keras.Model:
    """A subclassed model that is built by its first batch."""
    keras.utils.set_random_seed(11)
    model = Lazy()
    model.compile("adagrad", "mse", metrics=[keras.metrics.R2Score()])
    return model


class Tied(keras.Model):
    """A language model whose output projection is its embedding."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(7, 4)
        self.dense = layers.Dense(4, "gelu")
        self.bias = self.add_weight(shape=(7,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        return self.dense(self.embedding(x)) @ ops.transpose(self.embedding.embeddings) + self.bias


def tied() -> keras.Model:
    """An embedding that is the output projection too."""
    keras.utils.set_random_seed(12)
    model = Tied()
    model(np.zeros((1, 3), "int32"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def reversible() -> keras.Model:
    """The same with Keras's own layer, called twice in a graph."""
    keras.utils.set_random_seed(13)
    x, embedding = keras.Input((3,), dtype="int32"), layers.ReversibleEmbedding(7, 4)
    logits = embedding(layers.Dense(4)(embedding(x)), reverse=True)
    model = keras.Model(x, logits)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class OwnStep(Subclassed):
    """A model with its own `train_step`, in the signature of Keras on JAX."""

    def train_step(self, state: tuple, data: tuple) -> tuple:
        logs, state = super().train_step(state, data)
        return {**logs, "weight": ops.sum(state[0][0])}, state


class OwnLoop(keras.Model):
    """A `train_step` and a `test_step` from the ground up, as Keras's guide for JAX writes them."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense, self.dropout = layers.Dense(2), layers.Dropout(0.2)
        self.tracker = keras.metrics.Mean(name="tracked_loss")
        self.error = keras.metrics.MeanAbsoluteError(name="error")

    @property
    def metrics(self) -> list:
        return [self.tracker, self.error]

    def build(self, shape: tuple) -> None:
        self.dense.build(shape)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.dense(self.dropout(x, training=training))

    def _loss(self, params: list, others: list, x: Any, y: Any, training: bool) -> tuple:
        y_pred, others = self.stateless_call(params, others, x, training=training)
        return ops.mean((y - y_pred) ** 2), (y_pred, others)

    def _totals(self, values: list, loss: Any, y: Any, y_pred: Any) -> tuple:
        first = self.tracker.stateless_update_state(values[:2], loss)
        second = self.error.stateless_update_state(values[2:], y, y_pred)
        logs = {
            "tracked_loss": self.tracker.stateless_result(first),
            "error": self.error.stateless_result(second),
        }
        return logs, [*first, *second]

    def train_step(self, state: tuple, data: tuple) -> tuple:
        params, others, slots, values = state
        x, y = data
        run = jax.value_and_grad(self._loss, has_aux=True)
        (loss, (y_pred, others)), grads = run(params, others, x, y, True)
        params, slots = self.optimizer.stateless_apply(slots, grads, params)
        logs, values = self._totals(values, loss, y, y_pred)
        return logs, (params, others, slots, values)

    def test_step(self, state: tuple, data: tuple) -> tuple:
        params, others, values = state
        x, y = data
        loss, (y_pred, others) = self._loss(params, others, x, y, False)
        logs, values = self._totals(values, loss, y, y_pred)
        return logs, (params, others, values)


class OwnLoss(Subclassed):
    """A `compute_loss` that weighs the errors itself, and a metric held by an attribute."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.largest = keras.metrics.Mean(name="largest")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Any:
        loss = ops.mean(ops.abs(y - y_pred) ** 1.5) + sum(self.losses)
        self.largest.update_state(ops.max(ops.abs(y - y_pred)))
        return loss


class OwnUpdates(Subclassed):
    """`compute_loss_and_updates` of its own: the function that Keras differentiates."""

    def compute_loss_and_updates(self, *args: Any, **kwargs: Any) -> tuple:
        loss, (unscaled, y_pred, *rest) = super().compute_loss_and_updates(*args, **kwargs)
        return loss + 0.1 * ops.mean(ops.square(y_pred)), (unscaled, y_pred, *rest)


class OwnCompile(Lazy):
    """A `compile` with arguments of its own, as models with several losses have it."""

    def compile(self, optimizer: Any, metrics: list, own_loss: Any) -> None:
        super().compile(optimizer=optimizer, metrics=metrics)
        self.own_loss = own_loss
        self.tracker = keras.metrics.Mean(name="own")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Any:
        loss = self.own_loss(y, y_pred)
        self.tracker.update_state(loss)
        return loss


def own_compile() -> keras.Model:
    """A `compile` with arguments of its own, a loss of its own, a tracked metric."""
    keras.utils.set_random_seed(14)
    model = OwnCompile()
    model.compile("adam", ["mae"], keras.losses.Huber())
    return model
