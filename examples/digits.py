"""The main job: train a Keras model as a Flax TrainState, kill it half way, resume, read it four ways.

Run it with ``python examples/digits.py [--dataset mnist]``; it needs the ``examples`` extra.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import grain
import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

EPOCHS = {"digits": 20, "mnist": 2}


def load(dataset):
    """Images as rows in [0, 1] and labels, for training and for test."""
    if dataset == "mnist":
        (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        return x.reshape(-1, 784) / np.float32(255), y, x_test.reshape(-1, 784) / np.float32(255), y_test
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype("float32") / 16, y, test_size=360, random_state=0)
    return x, y, x_test, y_test


def build(features):
    """A classifier with moving statistics and random masks, so that resuming is not trivial."""
    keras.utils.set_random_seed(7)
    layers = [keras.Input((features,))]
    for _ in range(2):
        layers += [
            keras.layers.Dense(128, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["sparse_categorical_accuracy"])
    return model


def train(dataset, folder):
    """Trains from wherever the newest checkpoint is, and writes one a epoch."""
    x, y, x_test, y_test = load(dataset)
    model = build(x.shape[1])
    examples = grain.MapDataset.range(len(x)).seed(1).shuffle().map(lambda i: (x[i], y[i]))
    examples = examples.batch(32, drop_remainder=True)
    batches, epoch = iter(examples.repeat().to_iter_dataset()), len(examples)
    steps = EPOCHS[dataset] * epoch

    state = kfb.TrainState.from_keras(model)
    train_step, eval_step = kfb.make_train_step(model), kfb.make_eval_step(model)
    with kfb.CheckpointManager(folder / "checkpoints", save_every=epoch) as manager:
        if manager.latest_step is not None:
            state = manager.restore(state, data=batches)
        begin = int(state.step)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(f"from step {begin}", total=steps, completed=begin)
            for step in range(begin, steps):
                if step % epoch == 0:
                    state = state.reset_metrics()
                state, logs = train_step(state, next(batches))
                progress.advance(task)
                if (step + 1) % epoch == 0:
                    _, test_logs = eval_step(state.reset_metrics(), (x_test, y_test))
                    logs |= {f"test_{name}": value for name, value in test_logs.items()}
                    manager.save(state, data=batches, logs=logs)
                    logs = {name: float(value) for name, value in logs.items()}
                    progress.update(
                        task, description=f"loss {logs['loss']:.3f}, test {logs['test_loss']:.3f}"
                    )
                    print(json.dumps({"step": step + 1, **logs}), flush=True)


def run(arguments, kill_after=None):
    """Runs the training in a process of its own, kills it (SIGKILL) if asked to, returns its logs by step."""
    command = [sys.executable, __file__, "--worker", *arguments]
    logs = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for row in map(json.loads, process.stdout):
            logs[row.pop("step")] = row
            if kill_after and max(logs) >= kill_after:
                process.kill()
    print(f"  steps to {max(logs)}, exit code {process.returncode}")
    assert process.returncode == (-signal.SIGKILL if kill_after else 0)
    return logs


def report(folder, x, y):
    """Reads the checkpoint as a state, a Keras model, an NNX module and Linen variables."""
    model = build(x.shape[1])
    state = kfb.restore(folder, kfb.TrainState.abstract(lambda: build(x.shape[1])))
    linen = kfb.ToLinen(model)
    variables = kfb.restore(folder, linen.init(jax.random.key(0), x[:1]))
    outputs = {
        "TrainState": kfb.make_predict_step(model)(state, x),
        "Keras model": kfb.load_model(folder).predict(x, batch_size=len(x), verbose=0),
        "NNX module": kfb.restore(folder, kfb.ToNNX(model))(x),
        "Linen module": linen.apply(variables, x),
    }
    table = Table(
        "read as", "accuracy", "largest difference", title=f"step {int(state.step)}, {len(x)} held-out images"
    )
    for name, probabilities in outputs.items():
        accuracy = float(np.mean(np.argmax(probabilities, -1) == y))
        difference = float(np.max(np.abs(probabilities - outputs["TrainState"])))
        table.add_row(name, f"{accuracy:.4f}", f"{difference:.1e}")
        assert accuracy >= 0.95, f"{name}: accuracy {accuracy}"
        assert difference < 1e-6, f"{name}: differs by {difference}"
    Console().print(table)


def plot(logs, path):
    """Draws loss and accuracy over the steps."""
    _, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name in zip(axes, ("loss", "sparse_categorical_accuracy"), strict=True):
        for prefix in ("", "test_"):
            axis.plot(
                sorted(logs), [logs[step][prefix + name] for step in sorted(logs)], label=f"{prefix}{name}"
            )
        axis.set_xlabel("step")
        axis.legend()
    plt.savefig(path)
    print(f"curves: {path}")


def main():
    """Trains, kills, resumes and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=EPOCHS, default="digits")
    parser.add_argument(
        "--folder", type=Path, default=None, help="an empty folder for checkpoints and curves"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path(mkdtemp(prefix="digits-"))
    if options.worker:
        return train(options.dataset, folder)
    x, _, x_test, y_test = load(options.dataset)
    arguments = ["--dataset", options.dataset, "--folder", str(folder)]
    print(f"training on {len(x)} images; SIGKILL comes half way")
    before = run(arguments, kill_after=EPOCHS[options.dataset] * (len(x) // 32) // 2)
    print("a new process resumes from the newest checkpoint")
    after = run(arguments)
    again = before.keys() & after.keys()
    assert all(before[step] == after[step] for step in again), "the resumed run went another way"
    report(folder / "checkpoints", x_test, y_test)
    plot(before | after, folder / "curves.png")


if __name__ == "__main__":
    main()
