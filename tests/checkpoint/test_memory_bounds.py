"""What the commands take, in processes of their own: no file makes them take more than is said."""

import os
import shutil
import subprocess
import sys
import zipfile

import h5py
import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint as ocp
import pytest

import keras_flax_bridge as kfb
from tests.support import hostile_files as hostile
from tests.support.subprocesses import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
MOST = 200  # MiB above a process that only imports the package
REFUSED = 60  # MiB: what a file that is refused may cost


def some(names):
    """Each third runs in the second pass, as each starts a process; all run in the full run."""
    return [pytest.param(name, marks=pytest.mark.full if i % 3 else ()) for i, name in enumerate(names)]


def child(*arguments):
    """The exit codes of commands in a process of its own, and what they took, in MiB."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.memory", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    codes, taken = done.stdout.splitlines()[-1].split()
    return codes.split("."), int(taken)


# --- ordinary files and folders of 300 MB


def arrays():
    rng = np.random.default_rng(0)
    large = {name: rng.integers(0, 2**32, 20_000_000, "uint32") for name in ("a", "b", "c")}
    half = jnp.asarray(rng.normal(size=(3000, 9000)), "bfloat16")
    return {"large": large, "half": half, "small": {str(i): np.full(3000, i, "f4") for i in range(400)}}


def write_model(folder, widths, inputs):
    model = keras.Sequential([keras.Input((inputs,)), *(keras.layers.Dense(width) for width in widths)])
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    kfb.save(folder / "model", kfb.TrainState.from_keras(model, optimizer="sgd"))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordinary")
    state = arrays()
    for layout in ("tree", "packed"):
        kfb.save(folder / layout, state, layout=layout)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "foreign", state)
    many = {str(i): {"k": np.full((64, 64), i, "f4")} for i in range(6000)}
    kfb.save(folder / "many", many, layout="packed")
    write_model(folder, (6000, 4000, 4000, 2500), 3000)
    with (
        zipfile.ZipFile(folder / "m.keras") as stored,
        zipfile.ZipFile(folder / "p.keras", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with h5py.File(folder / "gzip.weights.h5", "w") as file:
        file.create_dataset("x", data=state["large"]["a"], compression=1, chunks=(1 << 20,))
    return folder


ROWS = {
    # name: (what is typed, exit code)
    "verify a tree": ("verify tree", 0),
    "verify packed": ("verify packed", 0),
    "verify what others wrote": ("verify foreign", 1),
    "verify many small leaves": ("verify many", 0),
    "verify a Keras file": ("verify m.keras", 0),
    "verify weights": ("verify m.weights.h5", 1),
    "inspect a tree": ("inspect tree", 0),
    "inspect a Keras file": ("inspect m.keras", 0),
    "inspect a deflated file": ("inspect p.keras", 0),
    "inspect weights": ("inspect m.weights.h5", 0),
    "diff": ("diff tree packed", 0),
    "values of trees": ("diff tree packed --values", 0),
    "values of what others wrote": ("diff foreign tree --values", 0),
    "values of many small leaves": ("diff many many --values", 0),
    "values of Keras files": ("diff m.keras p.keras --values", 0),
    "values of a Keras file and a checkpoint": ("diff m.keras model --values", 0),
    "values of weights": ("diff m.weights.h5 m.weights.h5 --values", 0),
    "values of compressed weights": ("diff gzip.weights.h5 gzip.weights.h5 --values", 0),
    "plan": ("plan m.keras", 0),
}


@pytest.mark.every(slow=6)
@pytest.mark.parametrize("row", some(ROWS))
def test_ordinary_files_take_little(ordinary, row):
    text, wanted = ROWS[row]
    words = [word if not (ordinary / word).exists() else ordinary / word for word in text.split()]
    codes, taken = child("run", *words)
    assert codes == [str(wanted)]
    assert taken <= MOST


# --- commands and functions that hold the arrays: at most twice their bytes, above the same with a tiny model

HOLDING = {
    # name: what is typed, or called on which paths
    "convert a Keras file to a checkpoint": "run convert m.keras new",
    "convert a checkpoint to a Keras file": "run convert model new.keras",
    "convert a checkpoint to another": "run convert model new --layout packed",
    "convert a checkpoint to Flax's": "run convert model new --to flax",
    "convert weights": "run convert m.weights.h5 new.safetensors --model m.keras",
    "eject": "run eject m.keras new.py",
    "load a Keras file": "called m.keras",
    "load a checkpoint": "called model",
    "restore into a model": "called model m.keras",
    "restore weights into a model": "called m.weights.h5 m.keras",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder, (6, 4, 4, 2), 3)
    return folder


@pytest.mark.every(slow=3)
@pytest.mark.parametrize("row", some(HOLDING))
def test_what_holds_the_arrays_adds_at_most_twice_their_bytes(ordinary, tiny, tmp_path, row):
    taken = {}
    for folder in (tiny, ordinary):
        place = lambda word, folder=folder: (tmp_path if word.startswith("new") else folder) / word  # noqa: E731
        words = [
            place(word) if word.partition(".")[0] in {"new", "m", "model"} else word
            for word in HOLDING[row].split()
        ]
        codes, taken[folder] = child(*words)
        assert codes == ["0"]
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    declared = (ordinary / "m.weights.h5").stat().st_size / 2**20
    assert taken[ordinary] - taken[tiny] <= 2 * declared


# --- hostile ones

BOMBS = [
    *("fill bomb.weights.h5", "never written.weights.h5", "gzip bomb.weights.h5", "chunk bomb.weights.h5"),
    *("config bomb.keras", "weights bomb.keras", "asset bomb.keras", "fill bomb in an archive.keras"),
    *("config of many values.keras", "long config.keras", "many members.keras", "both sizes larger.keras"),
    *("wide.weights.h5", "deep.weights.h5", "large chunk.weights.h5"),
    *("header without end.safetensors", "more than there is.safetensors", "header too deep.safetensors"),
]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    hostile.write_all(folder)
    return folder


@pytest.mark.every(slow=3)
@pytest.mark.parametrize("name", some(BOMBS))
def test_no_hostile_file_takes_much(bombs, name):
    codes, taken = child("refused", bombs / name.replace(" ", "_"))
    assert len(codes) == 5
    assert set(codes[1:]) <= {"1", "2"}
    assert codes[0] in "12" or name.startswith("chunk bomb")  # which shows only where arrays are read
    assert taken <= REFUSED
