"""Whole epochs: `kfb.fit` and `kfb.train` against `fit` of Keras and the loop written by hand."""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import contextlib
import io
import jax
import keras
import measure
import peers
import tempfile
from collections.abc import Callable
from costs import measured, positive
from steps import cut, data
from typing import Any

FIT, KFIT, TRAIN, HAND = "fit", "kfb.fit", "kfb.train", "by hand"
SAVING, EPOCHS = "kfb.train, a save every 100 steps", 2


def cnn() -> keras.Model:
    """Two convolutions over 28 x 28."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    convolutions = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(8, 3)]
    rest = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return peers.compiled(keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *rest]))


def wide_cnn() -> keras.Model:
    """Steps of tens of milliseconds, between which a save has time to be written."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    convolutions = [layers.Conv2D(32, 3, activation="relu") for _ in range(3)]
    rest = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return peers.compiled(keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *rest]))


def transformer() -> keras.Model:
    """Two encoder blocks with attention, as KerasHub builds them, over 16 vectors of 32."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = x = keras.Input((16, 32))
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 8, dropout=0.1)(x, x)
        x = layers.LayerNormalization()(x + layers.Dropout(0.1)(attended))
        wide = layers.Dense(32)(layers.Dense(64, "gelu")(x))
        x = layers.LayerNormalization()(x + layers.Dropout(0.1)(wide))
    return peers.compiled(keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x))))


def callbacks(count: int) -> list[keras.callbacks.Callback]:
    """Five that people use together; none has a hook for batches."""
    make = keras.callbacks
    all_of_them = [
        make.EarlyStopping("loss", patience=1000),
        make.ReduceLROnPlateau("loss", patience=1000),
        make.LearningRateScheduler(lambda epoch, rate: rate),
        make.CSVLogger(tempfile.mkstemp(suffix=".csv")[1]),
        make.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    ]
    return all_of_them[:count]


def fitted(run: Callable[..., Any], model: keras.Model, x: Any, y: Any, *, count: int, bar: bool) -> Any:
    steps = len(x) // 32 * EPOCHS

    def compete(clock: measure.Clock) -> Any:
        with clock("step", per=steps), contextlib.redirect_stdout(io.StringIO()):
            run(model, x, y, epochs=EPOCHS, verbose=int(bar), callbacks=callbacks(count))
            jax.block_until_ready(model.trainable_variables[0].value)
        return [variable.value for variable in model.trainable_variables]

    return compete


def trained(model: keras.Model, batches: list, *, count: int, bar: bool, saving: bool = False) -> Any:
    step, held = kfb.make_train_step(model), [kfb.TrainState.from_keras(model)]
    manager = kfb.CheckpointManager(tempfile.mkdtemp(), save_every=100) if saving else None
    goal = [0]

    def compete(clock: measure.Clock) -> Any:
        goal[0] += EPOCHS
        epochs = goal[0] if saving else EPOCHS  # a manager counts the epochs of all runs
        with clock("step", per=len(batches) * EPOCHS), contextlib.redirect_stdout(io.StringIO()):
            options = {"verbose": int(bar), "callbacks": callbacks(count), "manager": manager}
            held[0], _ = kfb.train(held[0], step, batches, epochs=epochs, **options)
            jax.block_until_ready(held[0].params)
        return held[0].params

    return compete


def by_hand(model: keras.Model, batches: list) -> Any:
    return measure.repeated(_epochs(*peers.by_hand(model), batches), None, 1, per=len(batches) * EPOCHS)


def _epochs(step: Callable, state: Any, batches: list) -> Callable:
    held = [state]

    def run(_: Any) -> Any:
        for _ in range(EPOCHS):
            for batch in batches:
                held[0] = step(held[0], batch)
        return held[0]

    return run


def row(name: str, make: Callable, shape: tuple, steps: int, count: int, bar: bool) -> measure.Work:
    x, y = data(steps, shape, 32)
    batches = cut(x, y, 32)
    competitors = {
        HAND: by_hand(make(), batches),
        FIT: fitted(keras.Model.fit, make(), x, y, count=count, bar=bar),
        KFIT: fitted(kfb.fit, make(), x, y, count=count, bar=bar),
        TRAIN: trained(make(), batches, count=count, bar=bar),
    }
    small = make is peers.mlp
    plain = small and not count and not bar
    targets = [
        measure.Target("step", KFIT, FIT, 0.8 if plain else 1.0),
        measure.Target("step", TRAIN, HAND, 1.05 if plain else None),
        measure.Target("step", TRAIN, FIT, 1.0),
        measure.Target("step", KFIT, HAND),
        measure.Target("step", FIT, HAND),
    ]
    if plain:
        competitors[SAVING] = trained(make(), batches, count=count, bar=bar, saving=True)
        targets.append(measure.Target("step", SAVING, TRAIN, 1.03))
    said = f"{name}, {count} callbacks, progress bar {'on' if bar else 'off'}"
    return measure.Work(said, competitors, targets, measure.finite)


def saves(smoke: bool) -> measure.Work:
    """A manager that saves every 100 steps, and none."""
    batches, make = cut(*data(4 if smoke else 100, (28, 28, 1), 32), 32), cnn if smoke else wide_cnn
    competitors = {
        TRAIN: trained(make(), batches, count=0, bar=False),
        SAVING: trained(make(), batches, count=0, bar=False, saving=True),
    }
    targets = [measure.Target("step", SAVING, TRAIN, 1.03)]
    return measure.Work("wide CNN, a save every 100 steps", competitors, targets, measure.finite)


def bare(smoke: bool) -> measure.Work:
    """The step alone: the ratio moves from process to process, so each round is a process of its own."""
    phase = "step / step by hand"
    competitors = {"bare step": measured(phase, "stepping", "", 2 if smoke else 60)}
    target = measure.Target(phase, "bare step", "", 1.02)
    return measure.Work("bare step of the MLP, in fresh processes", competitors, [target], positive, times=2)


def works(smoke: bool) -> list[measure.Work]:
    steps = 4 if smoke else 600
    models = {
        "MLP, batch 32": (peers.mlp, (784,), 1),
        "CNN": (cnn, (28, 28, 1), 4),
        "transformer": (transformer, (16, 32), 4),
    }
    ways = [(0, False), (5, False), (5, True)]
    rows = [
        row(name, make, shape, max(steps // share, 4), count, bar)
        for name, (make, shape, share) in list(models.items())[: 1 if smoke else None]
        for count, bar in (ways if name.startswith("MLP") and not smoke else ways[:1])
    ]
    return [*rows, saves(smoke), bare(smoke)]


if __name__ == "__main__":
    measure.main("loop", works)
