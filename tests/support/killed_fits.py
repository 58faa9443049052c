"""Programs that train through `kfb.fit`, to be killed at any moment and run again."""

import json
import random
import time
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_flax_bridge as kfb
from tests.support.cases import values
from tests.tables.callbacks import HELD_OUT, X, Y, small

BATCHES = 3


class Says(keras.callbacks.Callback):
    """Prints a line at each batch, and takes its time, so that there is one to be killed in."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        print("batch", flush=True)
        time.sleep(0.01)


def callbacks(folder: Path, name: str) -> list:
    return [
        keras.callbacks.EarlyStopping(patience=30, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.7),
        keras.callbacks.ModelCheckpoint(
            folder / f"{name}.weights.h5", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.CSVLogger(folder / f"{name}.csv"),
    ]


def one(fit: Any, folder: Path, epochs: int) -> tuple:
    """A model that is trained once."""
    model = small()
    return model, [fit(model, epochs=epochs, callbacks=callbacks(folder, "one"))]


def two(fit: Any, folder: Path, epochs: int) -> tuple:
    """The head, then all of it with another optimizer."""
    model = small()
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(0.05, name="adam"), "mse")
    head = fit(model, epochs=epochs // 2, callbacks=callbacks(folder, "head"))
    model.layers[0].trainable = True
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, name="sgd"), "mse", metrics=["mae"])
    return model, [head, fit(model, epochs=epochs // 2, callbacks=callbacks(folder, "all"))]


PROGRAMS = {"one": one, "two": two}


def outcome(model: keras.Model, histories: list) -> dict:
    """What the program ends with, as text."""
    checksums = {"/".join(path): zlib.crc32(value.tobytes()) for path, value in values(model).items()}
    found = {"weights": checksums, "history": [(one.epoch, one.history) for one in histories]}
    told: dict = json.loads(json.dumps(found))
    return told


def by_keras(name: str, folder: Path, epochs: int) -> dict:
    """The outcome of Keras's own `fit`, without a break."""
    np.random.seed(1)
    random.seed(1)
    given = {"x": X, "y": Y, "batch_size": 8, "verbose": 0, "validation_data": HELD_OUT}
    return outcome(*PROGRAMS[name](lambda model, **more: model.fit(**given, **more), folder, epochs))


def program(name: str, folder: str, epochs: int) -> None:
    """What is killed."""
    np.random.seed(1)
    random.seed(1)
    given = {"x": X, "y": Y, "batch_size": 8, "verbose": 0, "validation_data": HELD_OUT}
    files, run = Path(folder) / "files", Path(folder) / "run"
    files.mkdir(exist_ok=True)

    def fit(model: keras.Model, callbacks: list, **more: Any) -> Any:
        return kfb.fit(model, **given, **more, callbacks=[*callbacks, Says()], checkpoint=run)

    found = outcome(*PROGRAMS[name](fit, files, epochs))
    (Path(folder) / "outcome.json").write_text(json.dumps(found))
