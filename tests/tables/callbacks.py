"""The table of callbacks: each row is a `fit` that must be equal to Keras's, bit for bit.

A row has callbacks, arguments of `fit` and a model. One entry adds all checks.
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
from keras import callbacks as K
from keras import layers, ops

import keras_flax_bridge as kfb
from tests.support.fits import Fit, Result

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 4)).astype("float32"), RNG.normal(size=(24, 1)).astype("float32")
HELD_OUT = RNG.normal(size=(8, 4)).astype("float32"), RNG.normal(size=(8, 1)).astype("float32")
DATA = {"x": X, "y": Y, "batch_size": 8, "epochs": 3, "verbose": 0}
VALIDATED = {**DATA, "validation_data": HELD_OUT}
RISES = {"monitor": "loss", "mode": "max"}  # it falls: no epoch is better than the first


def small(**options: Any) -> keras.Model:
    """Few variables of each kind: statistics, a seed, slots, metrics."""
    keras.utils.set_random_seed(3)
    body = [  # names are in the files that callbacks write
        layers.Dense(3, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.2, name="dropout"),
        layers.Dense(1, name="last"),
    ]
    model = keras.Sequential([keras.Input((4,), name="x"), *body], name="small")
    model.compile(**{"optimizer": adam(), "loss": "mse", "metrics": ["mae"], **options})
    return model


def adam(**options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.03, name="adam", **options)


class Annealed(keras.Model):
    """A loss with a weight that callbacks change."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.beta = self.add_weight(shape=(), initializer="zeros", trainable=False, name="beta")

    def call(self, x: Any) -> Any:
        self.add_loss(self.beta * ops.mean(x**2))
        return self.dense(x)


def annealed() -> keras.Model:
    keras.utils.set_random_seed(4)
    model = Annealed()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def once(row: "Row", fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result) -> None:
    """One `fit`."""
    result.took(fit(model, folder, **row.arguments(), callbacks=[*row.callbacks(folder), *spies]))


@dataclass(frozen=True)
class Row:
    """A `fit`.

    Attributes:
        name: of the row.
        callbacks: makes the callbacks, which write into a folder.
        arguments: makes the arguments of `fit`.
        build: makes the model.
        run: does it, once or more often.
        around: what holds while it runs.
        spied: whether a callback that has all hooks is there as well.
        reads: whether that one reads the model in each hook.
        needs: a module without which Keras has no such callback.
        fast: whether it runs in the first pass.
    """

    name: str
    callbacks: Callable[[Path], list] = lambda folder: []
    arguments: Callable[[], dict] = lambda: VALIDATED
    build: Callable[[], keras.Model] = small
    run: Callable[..., None] = once
    around: Callable[[], AbstractContextManager] = nullcontext
    spied: bool = True
    reads: bool = False
    needs: str = ""
    fast: bool = False

    @property
    def is_possible(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None


# --- callbacks as people write them


def hook(name: str, act: Callable[[keras.Model, int], Any]) -> Callable[[Path], list]:
    """A callback that acts in one hook; it is told how often that was called."""
    kind = type(f"Acts_{name}", (K.Callback,), {"count": 0})

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        self.count += 1
        act(self.model, self.count)

    setattr(kind, name, call)
    return lambda folder: [kind()]


def warm_up(model: keras.Model, count: int) -> None:
    model.optimizer.learning_rate = 0.1 * min(1, count / 4)


def load(model: keras.Model, count: int) -> None:
    model.set_weights([np.full_like(w, 0.1) for w in model.get_weights()])


def clip(model: keras.Model, count: int) -> None:
    for weight in model.trainable_variables:
        weight.assign(ops.clip(weight, -0.3, 0.3))


def jump(model: keras.Model, count: int) -> None:
    model.optimizer.iterations.assign(10 * count)


def stop(at: int) -> Callable[[keras.Model, int], None]:
    def act(model: keras.Model, count: int) -> None:
        model.stop_training = count == at

    return act


def anneal(model: keras.Model, count: int) -> None:
    model.beta.assign(0.5 * count)


def reset_slots(model: keras.Model, count: int) -> None:
    if count == 4:
        for variable in model.optimizer.variables[2:]:
            variable.assign(ops.zeros(variable.shape))


class Teacher(K.Callback):
    """Keeps an average of the weights, and puts it into the model at the end."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.average = [np.array(w) for w in self.model.get_weights()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for a, w in zip(self.average, self.model.get_weights(), strict=True):
            a += 0.1 * (w - a)

    def on_train_end(self, logs: Any = None) -> None:
        self.model.set_weights(self.average)


class Older(K.Callback):
    """The older names of batch hooks."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((batch, logs["loss"]))
        self.model.optimizer.learning_rate.assign(0.05 / (1 + batch))


class Predicts(K.Callback):
    """Predicts, evaluates and saves in the middle of training."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.batches = folder, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == 4:
            self.model.save_weights(self.folder / "middle.weights.h5")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        np.save(self.folder / f"{epoch}.npy", self.model.predict(X[:8], verbose=0))
        logs["later"] = self.model.evaluate(*HELD_OUT, verbose=0)[0]


# --- several fits


def freezing(row: Row, fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result) -> None:
    """A frozen layer, then the same layer trained on, each compiled anew."""
    for trainable, rate in ((False, 0.05), (True, 0.01)):
        model.layers[0].trainable = trainable
        model.compile(keras.optimizers.Adam(rate), "mse")
        once(row, fit, model, folder, spies, result)


def again(row: Row, fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result) -> None:
    """A second `fit` with the same model and callbacks."""
    made = [*row.callbacks(folder), *spies]
    for options in ({}, {"initial_epoch": 3, "epochs": 5}):
        result.took(fit(model, folder, **{**row.arguments(), **options}, callbacks=made))


def mixed(
    first: Any, row: Row, fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result
) -> None:
    """Keras's `fit` before or after that of the bridge."""
    order = [fit, None] if first is None else [None, fit]
    for one in order:
        one = one or (lambda model, folder, **options: model.fit(**options))
        once(row, one, model, folder, spies, result)


def as_list(row: Row, fit: Fit, model: keras.Model, folder: Path, spies: list, result: Result) -> None:
    """Keras's own list of callbacks."""
    options = {"add_history": True, "model": model, "epochs": 3, "steps": 3, "verbose": 0}
    made = K.CallbackList([*row.callbacks(folder), *spies], **options)
    result.took(fit(model, folder, **row.arguments(), callbacks=made))


def two_savers(folder: Path) -> list:
    return [kfb.callbacks.TrainStateCheckpoint(folder.parent / f"{folder.name} {i}") for i in range(2)]


def no_network() -> AbstractContextManager:
    """What RemoteMonitor sends goes nowhere."""
    return mock.patch("requests.post")


def stopping(**options: Any) -> Callable[[Path], list]:
    return lambda folder: [K.EarlyStopping(patience=1, **options)]


def saving(name: str, **options: Any) -> Callable[[Path], list]:
    return lambda folder: [K.ModelCheckpoint(folder / name, **options)]


def six() -> dict:
    return {**VALIDATED, "epochs": 6}


def diverging() -> keras.Model:
    return small(optimizer=keras.optimizers.SGD(1e30))


def averaged() -> keras.Model:
    return small(optimizer=adam(use_ema=True, ema_overwrite_frequency=2))


def kept() -> keras.Model:
    return small(optimizer=adam(use_ema=True, ema_momentum=0.5))


def many(folder: Path) -> list:
    """What is commonly given together."""
    return [
        K.EarlyStopping(patience=2, **RISES, restore_best_weights=True),
        K.ReduceLROnPlateau(patience=1, **RISES),
        K.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True, save_weights_only=True),
        K.CSVLogger(folder / "log.csv"),
    ]


ROWS = [
    Row("many at once", many, arguments=six, fast=True),
    # --- that Keras ships
    Row("nothing", spied=False, fast=True),
    Row("every hook"),
    Row("reads the model in every hook", reads=True, fast=True),
    Row("BackupAndRestore", lambda f: [K.BackupAndRestore(f / "backup")]),
    Row("BackupAndRestore by batch", lambda f: [K.BackupAndRestore(f / "backup", save_freq=2)]),
    Row("CSVLogger", lambda f: [K.CSVLogger(f / "log.csv")]),
    Row("CSVLogger appends", lambda f: [K.CSVLogger(f / "log.csv", append=True)], run=again),
    Row("EarlyStopping", stopping(**RISES), arguments=six),
    Row("EarlyStopping, best weights", stopping(**RISES, restore_best_weights=True), arguments=six),
    Row("EarlyStopping never", stopping(baseline=1e9, restore_best_weights=True)),
    Row("LambdaCallback", lambda f: [K.LambdaCallback(on_epoch_end=lambda e, logs: logs.update(more=e))]),
    Row("LearningRateScheduler", lambda f: [K.LearningRateScheduler(lambda e, rate: rate * 0.5)]),
    Row("ModelCheckpoint of weights", saving("{epoch}-{loss:.3f}.weights.h5", save_weights_only=True)),
    Row("ModelCheckpoint of the model", saving("{epoch}.keras")),
    Row(
        "ModelCheckpoint of the best", saving("best.weights.h5", save_best_only=True, save_weights_only=True)
    ),
    Row(
        "ModelCheckpoint by batch", saving("{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=2)
    ),
    Row("ModelCheckpoint of models by batch", saving("{epoch}-{batch}.keras", save_freq=2)),
    Row("ProgbarLogger", lambda f: [K.ProgbarLogger()]),
    Row("ReduceLROnPlateau", lambda f: [K.ReduceLROnPlateau(patience=1, **RISES)], arguments=six),
    Row("RemoteMonitor", lambda f: [K.RemoteMonitor()], around=no_network, needs="requests"),
    Row("SwapEMAWeights", lambda f: [K.SwapEMAWeights()], build=kept),
    Row("SwapEMAWeights on epoch", lambda f: [K.SwapEMAWeights(swap_on_epoch=True)], build=kept),
    Row("TerminateOnNaN", lambda f: [K.TerminateOnNaN()], build=diverging),
    Row("TensorBoard", lambda f: [K.TensorBoard(f.parent / f"{f.name} events")], needs="tensorflow"),
    Row("History twice", lambda f: [K.History()]),
    # --- as people write them
    Row("annealing at the beginning", hook("on_epoch_begin", anneal), build=annealed),
    Row("annealing at the end", hook("on_epoch_end", anneal), build=annealed),
    Row("annealing by batch", hook("on_train_batch_begin", anneal), build=annealed),
    Row("warm-up by batch", hook("on_train_batch_begin", warm_up), fast=True),
    Row("warm-up after the batch", hook("on_train_batch_end", warm_up)),
    Row("weights loaded", hook("on_train_begin", load)),
    Row("weights loaded at the beginning of epochs", hook("on_epoch_begin", load)),
    Row("weights clipped by batch", hook("on_train_batch_end", clip)),
    Row("weights clipped at the end of an epoch", hook("on_epoch_end", clip)),
    Row("teacher", lambda f: [Teacher()]),
    Row("older names", lambda f: [Older()]),
    Row("iterations changed by batch", hook("on_train_batch_end", jump)),
    Row("iterations changed", hook("on_epoch_begin", jump)),
    Row("slots reset by batch", hook("on_train_batch_begin", reset_slots)),
    Row("stopped by batch", hook("on_train_batch_end", stop(5))),
    Row("stopped by the begin of a batch", hook("on_train_batch_begin", stop(5))),
    Row("stopped at the beginning of an epoch", hook("on_epoch_begin", stop(2))),
    Row("stopped in evaluation", hook("on_test_batch_end", stop(2))),
    Row("weights changed in evaluation", hook("on_test_begin", clip)),
    Row("weights changed by batch of evaluation", hook("on_test_batch_end", clip)),
    Row("predicts", lambda f: [Predicts(f)]),
    Row("weights averaged", build=averaged),
    Row("weights averaged at the end", build=kept),
    Row("two TrainStateCheckpoints", two_savers),
    # --- several fits
    Row("freezing between", run=freezing),
    Row("a second fit", lambda f: [K.EarlyStopping("loss", patience=9)], run=again),
    Row("model.fit afterwards", run=partial(mixed, None)),
    Row("model.fit before", run=partial(mixed, "keras")),
    Row("a CallbackList", run=as_list),
]
