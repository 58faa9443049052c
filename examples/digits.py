"""The main job: train a Keras model with `kfb.fit`, kill it half way, resume, read it four ways.

Run it with ``python examples/digits.py [FOLDER]``; it needs the ``examples`` extra.
"""

import csv
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.utils import shuffle

EPOCHS = 20
IMAGES, DIGITS = shuffle(*load_digits(return_X_y=True), random_state=0)
(X, X_TEST), (Y, Y_TEST) = np.split(IMAGES.astype("float32") / 16, [-360]), np.split(DIGITS, [-360])


def build():
    """A classifier with moving statistics and random masks, so that resuming is not trivial."""
    keras.utils.set_random_seed(7)
    hidden = [layers.Dense(128, "relu"), layers.BatchNormalization(), layers.Dropout(0.2)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(folder):
    """Trains with the arguments of `fit`, from wherever the newest checkpoint is; one is written an epoch."""
    callbacks = [
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=2),
        keras.callbacks.ModelCheckpoint(folder / "best.keras", "val_loss", save_best_only=True),
    ]
    options = {"epochs": EPOCHS, "validation_data": (X_TEST, Y_TEST), "callbacks": callbacks, "verbose": 0}
    kfb.fit(build(), X, Y, **options, checkpoint=folder / "checkpoints")


def run(folder, kill=False):
    """Trains in a process of its own, which is killed (SIGKILL) half way if asked for."""
    log = folder / "log.csv"
    with subprocess.Popen([sys.executable, __file__, folder, "--worker"]) as process:
        while kill and process.poll() is None and log.read_text().count("\n") < EPOCHS // 2:
            time.sleep(0.1)
        process.kill() if kill else process.wait()
    print(f"  exit code {process.returncode}")
    assert process.returncode == (-9 if kill else 0)


def report(path):
    """Reads the checkpoint as a state, a Keras model, an NNX module and Linen variables."""
    model, linen = build(), kfb.ToLinen(build())
    state = kfb.restore(path, kfb.TrainState.abstract(build))
    variables = kfb.restore(path, linen.init(jax.random.key(0), X_TEST))
    outputs = {
        "TrainState": kfb.make_predict_step(model)(state, X_TEST),
        "Keras model": kfb.load_model(path).predict(X_TEST, batch_size=len(X_TEST), verbose=0),
        "NNX module": kfb.restore(path, kfb.ToNNX(model))(X_TEST),
        "Linen module": linen.apply(variables, X_TEST),
    }
    print(f"step {int(state.step)} read as")
    for name, probabilities in outputs.items():
        accuracy = np.mean(np.argmax(probabilities, -1) == Y_TEST)
        difference = np.max(np.abs(probabilities - outputs["TrainState"]))
        print(f"  {name:12}  test accuracy {accuracy:.4f}, largest difference {difference:.1e}")
        assert accuracy >= 0.95, name
        assert difference < 1e-6, name


def main():
    """Trains, kills, resumes, reports and draws the curves."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp(prefix="digits-"))
    if "--worker" in sys.argv:
        return train(folder)
    (folder / "log.csv").touch()
    print(f"training on {len(X)} images; SIGKILL comes half way")
    run(folder, kill=True)
    print("a new process resumes from the newest checkpoint")
    run(folder)
    report(folder / "checkpoints")
    logs = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in logs] == [*range(EPOCHS)], "an epoch is missing, or there twice"
    plt.plot([[float(row[name]) for name in ("loss", "val_loss")] for row in logs])
    plt.legend(["loss", "val_loss"])
    plt.savefig(folder / "curves.png")
    print(f"curves: {folder / 'curves.png'}")


if __name__ == "__main__":
    main()
