"""Models and data that a new process can import, to be stopped and resumed."""

import grain
import keras
import numpy as np
from keras import layers, optimizers

SIZE = 8
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 5, 3)).astype("float32"), RNG.normal(size=(40, 1)).astype("float32")


def everything() -> keras.Model:
    """Dropout, moving statistics, dropout in an RNN, loss scaling, a schedule, an average, accumulation."""
    keras.utils.set_random_seed(1)
    layers.Dropout(0.1)  # moves Keras's counters of names
    schedule = optimizers.schedules.CosineDecay(1e-2, 20)
    inner = optimizers.Adam(schedule, use_ema=True, ema_overwrite_frequency=3, gradient_accumulation_steps=2)
    model = keras.Sequential(
        [
            layers.LSTM(4, dropout=0.2, recurrent_dropout=0.1),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    model.compile(optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=3), "mse", metrics=["mae"])
    return model


def shuffled():
    """Shuffled batches from Grain, which go over epochs."""
    rows = grain.MapDataset.range(len(X)).seed(3).shuffle().repeat()
    return iter(rows.map(lambda i: (X[i], Y[i])).batch(SIZE).to_iter_dataset())


class Own:
    """An iterator of the user's own that can say where it is."""

    def __init__(self, *, remembers: bool = True):
        self.order, self.at, self.remembers = np.random.default_rng(5), 0, remembers

    def __next__(self) -> tuple:
        rows = self.order.integers(0, len(X), SIZE)
        self.at += 1
        return X[rows], Y[rows]

    def get_state(self) -> dict:
        return self.order.bit_generator.state if self.remembers else {}

    def set_state(self, state: dict) -> None:
        if state:
            self.order.bit_generator.state = state


def forgetting() -> Own:
    return Own(remembers=False)


def missing() -> None:
    raise FileNotFoundError("no data here")


def excluded() -> keras.Model:
    """Weight decay with exclusions by name and by variable."""
    model = keras.Sequential([keras.Input((5, 3)), layers.Flatten(), layers.Dense(4), layers.Dense(1)])
    optimizer = optimizers.AdamW(1e-2, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[-1].kernel], var_names=["bias"])
    model.compile(optimizers.LossScaleOptimizer(optimizer), "mse")
    return model
