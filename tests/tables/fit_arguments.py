"""The table of arguments of `fit`, of data and of models; its rows are those of the table of callbacks."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grain
import keras
import numpy as np
from keras import layers, ops

from tests.support.fits import Fit, Result
from tests.support.models import graphs, stateful
from tests.support.models import subclassed as sub
from tests.tables.callbacks import DATA, HELD_OUT, VALIDATED, Row, X, Y, small

RNG = np.random.default_rng(1)
RUN = {"epochs": 3, "verbose": 0}
CLASSES = RNG.integers(0, 3, 24).astype("int32")
WEIGHTS = RNG.random(24).astype("float32")


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=(24, *shape)).astype("float32")


# --- data


class Rows(keras.utils.PyDataset):
    """Batches by number, of which Keras may shuffle the order."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple:
        return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


class Changing(Rows):
    """Other rows in each epoch."""

    order: Any = range(24)

    def __getitem__(self, i: int) -> tuple:
        rows = list(self.order)[8 * i : 8 * i + 8]
        return X[rows], Y[rows]

    def on_epoch_end(self) -> None:
        self.order = list(self.order)[::-1]


class Endless(Rows):
    """Of a length that it does not tell."""

    num_batches = None

    def __getitem__(self, i: int) -> tuple:
        return super().__getitem__(i % 3)


def generator(count: int = 10**6, *more: Any) -> Iterator[tuple]:
    rng = np.random.default_rng(5)
    for _ in range(count):
        rows = rng.integers(0, 24, 8)
        yield (X[rows], Y[rows], *(one[rows] for one in more))


def grained() -> Any:
    rows = grain.MapDataset.range(24).seed(3).shuffle()
    return rows.map(lambda i: (X[i], Y[i])).batch(8)


def torch_loader() -> Any:
    import torch

    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(data, batch_size=8)


def tf_data() -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(24, seed=3).batch(8)


def frames() -> tuple:
    import pandas as pd

    return pd.DataFrame(X), pd.DataFrame(Y)


def of(x: Callable[[], Any], **more: Any) -> Callable[[], dict]:
    """Arguments with data that is made anew for each `fit`."""
    return lambda: {"x": x(), **RUN, **more}


def given(**more: Any) -> Callable[[], dict]:
    return lambda: {**DATA, **more}


def by_position(row: Row, fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result) -> None:
    """Without the names of arguments."""
    result.took(fit(model, folder, X, Y, 8, 3, 0, spies, 0.25, None, False, None, WEIGHTS, 1, 2, 1, 3, 1))


# --- models


def classes(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax", name="head")], name="classes")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def weighted() -> keras.Model:
    return classes(weighted_metrics=["accuracy"])


def without_input() -> keras.Model:
    """Keras builds it from its first batch."""
    keras.utils.set_random_seed(6)
    model = keras.Sequential([layers.Dense(3), layers.Dropout(0.2), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def of_dict() -> keras.Model:
    keras.utils.set_random_seed(7)
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([inputs["a"], inputs["b"]])))
    model.compile("adam", "mse")
    return model


def counting() -> keras.Model:
    """Metrics of several variables, one of which is weighted."""
    keras.utils.set_random_seed(9)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, "sigmoid")])
    metrics = [keras.metrics.AUC(name="auc"), keras.metrics.F1Score(threshold=0.5, name="f1")]
    recall = keras.metrics.Recall(name="recall")
    model.compile("adam", "binary_crossentropy", metrics=metrics, weighted_metrics=[recall])
    return model


def of_lists() -> keras.Model:
    """Outputs without names of their own in losses and metrics."""
    keras.utils.set_random_seed(10)
    inputs = [keras.Input((4,)), keras.Input((2,))]
    hidden = layers.Concatenate()([layers.Dense(3, "tanh")(one) for one in inputs])
    model = keras.Model(inputs, [layers.Dense(n, name=f"out_{n}")(hidden) for n in (1, 2)])
    model.compile("adam", ["mse", "mae"], loss_weights=[1.0, 0.5], metrics=[["mae", "mae"], None])
    return model


class Gan(keras.Model):
    """Two networks against each other, each with its gradients, in a step of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(4)])
        self.critic = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(1)])
        self.seeds = keras.random.SeedGenerator(1)
        self.trackers = [keras.metrics.Mean(name="g_loss"), keras.metrics.Mean(name="c_loss")]

    @property
    def metrics(self) -> list:
        return self.trackers

    def call(self, x: Any) -> Any:
        return self.critic(x)

    def compute_loss(self, x: Any = None, *others: Any, **kwargs: Any) -> Any:
        fake = self.generator(keras.random.normal((len(x), 2), seed=self.seeds))
        critic = ops.mean(self.critic(ops.stop_gradient(fake))) - ops.mean(self.critic(x))
        fooled = -ops.mean(self.critic(fake))
        for tracker, loss in zip(self.trackers, (fooled, critic), strict=True):
            tracker.update_state(loss)
        return critic + 0.1 * fooled


def gan() -> keras.Model:
    keras.utils.set_random_seed(8)
    model = Gan()
    model.build((None, 4))
    model.compile(keras.optimizers.Adam(1e-2))
    return model


TARGETS = normal(2)


def own_data() -> dict:
    return {"x": X, "y": TARGETS, "batch_size": 8, **RUN, "validation_data": (X, TARGETS)}


TWO = {"left": normal(4), "right": normal(4)}, {"sum": normal(1), "difference": normal(1)}
LISTS = [normal(4), normal(2)], [normal(1), normal(2)]
STATES = normal(4, 3)

ROWS = [
    # --- arguments
    Row("by position", run=by_position),
    Row("in order", arguments=given(shuffle=False)),
    Row("a last batch of another size", arguments=given(batch_size=10)),
    Row("by batch", arguments=given(shuffle="batch")),
    Row("batch size left out", arguments=lambda: {"x": X, "y": Y, **RUN}),
    Row("class_weight", arguments=given(y=CLASSES, class_weight={0: 1.0, 1: 0.2, 2: 3.0}), build=weighted),
    Row("sample_weight", arguments=given(y=CLASSES, sample_weight=WEIGHTS), build=weighted),
    Row("validation_split", arguments=given(validation_split=0.3)),
    Row("validation with weights", arguments=given(validation_data=(*HELD_OUT, WEIGHTS[:8]))),
    Row("validation_freq", arguments=lambda: {**VALIDATED, "validation_freq": 2}),
    Row("validation_freq in a list", arguments=lambda: {**VALIDATED, "validation_freq": [1, 3]}),
    Row(
        "validation by a generator",
        arguments=lambda: given(validation_data=generator(), validation_steps=2)(),
    ),
    Row("validation by a PyDataset", arguments=lambda: given(validation_data=Rows())()),
    Row(
        "validation_steps",
        arguments=given(validation_data=(X, Y), validation_steps=2, validation_batch_size=5),
    ),
    Row("initial_epoch", arguments=given(initial_epoch=1)),
    Row("no epoch is left", arguments=given(initial_epoch=3), spied=False),
    Row("steps_per_epoch of arrays", arguments=given(steps_per_epoch=2)),
    Row("steps_per_epoch of a generator", arguments=of(generator, steps_per_epoch=2, shuffle=False)),
    Row("steps_per_epoch of a PyDataset", arguments=of(Rows, steps_per_epoch=2)),
    Row("steps_per_epoch of Grain", arguments=of(grained, steps_per_epoch=2, shuffle=False)),
    # --- data
    Row("a generator that ends", arguments=of(partial(generator, 4), steps_per_epoch=3, shuffle=False)),
    Row("a generator without steps", arguments=of(partial(generator, 4), shuffle=False)),
    Row(
        "a generator with weights",
        arguments=of(partial(generator, 10**6, WEIGHTS), steps_per_epoch=3, shuffle=False),
    ),
    Row("a PyDataset", arguments=of(Rows)),
    Row("a PyDataset with workers", arguments=of(partial(Rows, workers=2))),
    Row("a PyDataset that changes", arguments=of(Changing)),
    Row("a PyDataset without a length", arguments=of(Endless, steps_per_epoch=3, shuffle=False)),
    Row("Grain", arguments=of(grained, shuffle=False)),
    Row("a torch DataLoader", arguments=of(torch_loader, shuffle=False), needs="torch"),
    Row("tf.data", arguments=of(tf_data, shuffle=False), needs="tensorflow"),
    Row("pandas", arguments=lambda: dict(zip("xy", frames(), strict=True), **RUN), needs="pandas"),
    Row("a dict", arguments=lambda: {**DATA, "x": {"a": X, "b": X[:, :2]}}, build=of_dict),
    # --- models
    Row("steps_per_execution", arguments=given(), build=partial(small, steps_per_execution=2), fast=True),
    Row("steps_per_execution, validated", build=partial(small, steps_per_execution=2)),
    Row("run_eagerly", build=partial(small, run_eagerly=True)),
    Row("jit_compile=False", build=partial(small, jit_compile=False)),
    Row("own steps", arguments=own_data, build=partial(sub.subclassed, sub.OwnLoop)),
    Row("own train_step", arguments=own_data, build=partial(sub.subclassed, sub.OwnStep)),
    Row("own loss", arguments=own_data, build=partial(sub.subclassed, sub.OwnLoss)),
    Row("lazy", arguments=own_data, build=sub.lazy),
    Row("GAN", arguments=lambda: {"x": X, "batch_size": 8, **RUN}, build=gan),
    Row("without Input", build=without_input),
    Row("inputs and outputs in dicts", arguments=given(x=TWO[0], y=TWO[1]), build=graphs.functional),
    Row("inputs and outputs in lists", arguments=given(x=LISTS[0], y=LISTS[1]), build=of_lists),
    Row("a stateful RNN", arguments=given(x=STATES), build=stateful.stateful_rnn),
    Row("metrics with states", arguments=given(y=(Y > 0).astype("float32")), build=counting),
]
