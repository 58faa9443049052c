"""What one set of versions of the dependencies writes, and that another one reads it bit for bit.

``python -m tests.support.cross_versions PYTHON PYTHON ...`` takes the interpreters of several sets: each
writes, each reads what each has written, and each goes on with a run of the others that was killed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import keras
import numpy as np

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.checkpoint.saving import versions
from keras_flax_bridge.startup import compat
from tests.support import older_versions as older

DATA = Path(__file__).parents[1] / "data" / "dependencies"
TEST = "tests/checkpoint/test_dependency_versions.py"
TOLERANCE = 2e-5  # of a run that goes on under other versions, whose programs XLA compiles otherwise
EPOCHS, KILLED = 6, 3


# --- files


def folders():
    """What there is to read: the data in the repository, or those that `CROSS` names."""
    given = os.environ.get("CROSS")
    return [Path(name) for name in given.split(":")] if given else sorted(DATA.iterdir())


def write(folder):
    """Writes one of each kind, and `expected.json` with what is in them."""
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(7)
    state = list(older.trained(older.build()))[-1]
    model = older.load(state)
    module = migrate.to_nnx(model)
    optax = older.stepped(older.with_optax())
    trees = {"model": state, "kinds_tree": older.kinds("tree"), "module": module, "optax": optax}
    for name, tree in trees.items():
        kfb.save(folder / name, tree)
    kfb.save(folder / "packed", state, layout="packed")
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    (folder / "source.py").write_text(migrate.to_source(model))
    outputs = np.asarray(module(older.X)).tolist()
    for callback in compat.kinds("OrbaxCheckpoint"):
        _call(callback(str(folder.resolve() / "callback")), model)
    for file in folder.rglob(
        "commit_success.txt"
    ):  # Orbax writes where it lies, which is of no use elsewhere
        file.write_text(f"Checkpoint commit was successful to {file.parent.name}")
    expected = {name: older.specs(tree) for name, tree in trees.items()}
    expected |= {"versions": versions(), "outputs": outputs}
    (folder / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


def _call(saver, model):
    saver.set_model(model)
    saver.on_train_begin()
    saver.on_epoch_end(0)
    saver.on_train_end()


# --- a run


def build():
    """A model whose steps depend on nothing but its arithmetic and its masks."""
    keras.utils.set_random_seed(3)
    body = [keras.layers.Dense(8, "tanh"), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    return model


class Killed(keras.callbacks.Callback):
    """Ends the process as the system does, once an epoch and its checkpoint are over."""

    def __init__(self, folder, epoch):
        super().__init__()
        self.folder, self.epoch = folder, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            while not any(self.folder.glob("[0-9]*/_CHECKPOINT_METADATA")):
                time.sleep(0.05)  # saves go on in the background
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder, kill):
    """Fits from the newest checkpoint on, and is killed half way if asked for."""
    model = build()
    callback = kfb.callbacks.TrainStateCheckpoint(str(folder))
    callbacks = [callback, *([Killed(folder, KILLED)] if kill else [])]
    model.fit(older.X, older.Y, epochs=EPOCHS, batch_size=3, verbose=0, callbacks=callbacks)


def ends(folder):
    """The weights at the end of a run, read as a state, a model, an NNX module and Linen variables."""
    model, linen = build(), kfb.ToLinen(build())
    state = kfb.restore(folder, kfb.TrainState.abstract(build, batch=(older.X, older.Y)))
    module = kfb.restore(folder, kfb.ToNNX(build()))
    variables = kfb.restore(folder, linen.init(jax.random.key(0), older.X))
    outputs = [
        kfb.make_predict_step(model)(state, older.X),
        kfb.restore(folder, build())(older.X),
        module(older.X),
        linen.apply(variables, older.X),
    ]
    assert max(float(np.max(np.abs(one - outputs[0]))) for one in map(np.asarray, outputs)) < 1e-6
    return np.asarray(outputs[0])


# --- all directions


def command(python, *arguments, expect=0, **variables):
    """Runs this module, or pytest, by the interpreter of a set; gives what it printed."""
    environment = {**os.environ, "KERAS_BACKEND": "jax", **variables}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode != expect:
        raise SystemExit(f"{python} {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def all_directions(pythons):
    """Every set writes, every set reads; a run of every set is gone on with by every set."""
    folder = Path(tempfile.mkdtemp(prefix="cross-"))
    own = ("-m", "tests.support.cross_versions")
    for number, python in enumerate(pythons):
        command(python, *own, "--write", str(folder / f"written{number}"))
        command(python, *own, "--fit", str(folder / f"run{number}"))
        command(python, *own, "--kill", str(folder / f"killed{number}"), expect=-signal.SIGKILL)
    written = ":".join(str(folder / f"written{number}") for number in range(len(pythons)))
    for number, python in enumerate(pythons):
        said = command(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST, CROSS=written)
        print(f"set {number} reads all {len(pythons)} sets: {said.splitlines()[-1]}", flush=True)
        for other in range(len(pythons)):
            off = _resumed(python, folder, number, other, own)
            print(
                f"set {number} goes on with the run of set {other}: largest difference {off:.1e}", flush=True
            )


def _resumed(python, folder, number, other, own):
    """How far a run that another set began ends from the one that this set went whole."""
    run = folder / f"killed{other}-by{number}"
    command(python, "-c", f"import shutil; shutil.copytree({str(folder / f'killed{other}')!r}, {str(run)!r})")
    command(python, *own, "--fit", str(run))
    whole, gone_on = (
        np.array(json.loads(command(python, *own, "--ends", str(place)).splitlines()[-1]))
        for place in (folder / f"run{number}", run)
    )
    off = float(np.max(np.abs(whole - gone_on)))
    if off > (0 if number == other else TOLERANCE):
        raise SystemExit(f"{python}: the run of set {other} ended {off:.1e} elsewhere")
    return off


ACTS = {
    "--write": write,
    "--fit": lambda folder: fit(folder, kill=False),
    "--kill": lambda folder: fit(folder, kill=True),
    "--ends": lambda folder: print(json.dumps(ends(folder).tolist())),
}

if __name__ == "__main__":
    if sys.argv[1] in ACTS:
        ACTS[sys.argv[1]](Path(sys.argv[2]))
    else:
        all_directions(sys.argv[1:])
