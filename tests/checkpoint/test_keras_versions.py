"""A config of a newer Keras that this one can't read: the error names the version that wrote it."""

import json
import shutil
import zipfile
import zlib

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint.orbax_io.api import MARK, OURS, OURS_SUM
from tests.support.cases import differing

NEWER = "99.1.0"


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="only")])
    model.compile("sgd", "mse")
    return model


def foreign(config):
    """The config of a layer with an argument that no Keras knows."""
    text = json.dumps(config).replace('"units": 1', '"units": 1, "no_such_axes": [0]')
    assert text != json.dumps(config)
    return json.loads(text)


def newer_file(path, version=NEWER, model=None):
    (model or build()).save(path.with_name("whole.keras"))
    with zipfile.ZipFile(path.with_name("whole.keras")) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            if name == "config.json":
                text = json.dumps(foreign(json.loads(text)))
            elif name == "metadata.json":
                text = json.dumps({**json.loads(text), "keras_version": version})
            target.writestr(name, text)
    return path


def newer_checkpoint(path, version=NEWER):
    kfb.save(path, kfb.TrainState.from_keras(build()))
    mark = json.loads((path / MARK).read_text())
    ours = json.loads(mark["custom_metadata"][OURS])
    ours["model"] = foreign(ours["model"])
    ours["versions"]["keras"] = version
    text = json.dumps(ours)
    mark["custom_metadata"] |= {OURS: text, OURS_SUM: zlib.crc32(text.encode())}
    (path / MARK).write_text(json.dumps(mark))
    return path


MADE = {"a file": (newer_file, "newer.keras"), "a checkpoint": (newer_checkpoint, "newer")}


@pytest.mark.parametrize("kind", MADE)
def test_the_version_that_wrote_it_is_named(tmp_path, kind):
    make, name = MADE[kind]
    with pytest.raises(kfb.CheckpointError) as error:
        kfb.load_model(make(tmp_path / name))
    assert f"of Keras {NEWER}" in error.value.got
    assert f"Update Keras, which is {keras.__version__} here, to {NEWER} or newer" in error.value.fix
    assert "restore(path, model)" in error.value.fix


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("version", [keras.__version__, "no version\x1b[31m", ""])
def test_one_that_is_not_newer_is_no_reason(tmp_path, kind, version):
    make, name = MADE[kind]
    with pytest.raises(kfb.CheckpointError) as error:
        kfb.load_model(make(tmp_path / name, version))
    assert "Update Keras" not in error.value.fix
    assert "\x1b" not in str(error.value)


def test_the_weights_are_read_into_a_model_that_is_built(tmp_path):
    path = newer_checkpoint(tmp_path / "newer")
    written = kfb.restore(path, kfb.TrainState.from_keras(build()))
    model = kfb.restore(path, build())
    assert np.array_equal(model.get_weights()[0], written.params["only"]["kernel"])
    shutil.rmtree(path)


def trained():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    return model


def swapped():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def otherwise(optimizer):
    model = trained()
    model.compile(optimizer, "mse")
    return model


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A file of a newer Keras, and the model that wrote it."""
    model = trained()
    return newer_file(tmp_path_factory.mktemp("newer") / "newer.keras", model=model), model


TREES = ("step", "params", "opt_state")
INTO = {
    "a model": lambda path: kfb.TrainState.from_keras(kfb.restore(path, trained())),
    "a state": lambda path: kfb.restore(path, kfb.TrainState.from_keras(trained())),
    "an abstract state": lambda path: kfb.restore(path, kfb.TrainState.abstract(trained_abstract)),
}


def trained_abstract():
    model = swapped()
    model.layers[0].name = "a"
    return model


@pytest.mark.parametrize("into", INTO)
def test_a_file_is_read_without_its_config(newer, into):
    path, wrote = newer
    wanted, found = kfb.TrainState.from_keras(wrote), INTO[into](path)
    for tree in TREES:
        assert differing({tree: getattr(found, tree)}, {tree: getattr(wanted, tree)}) == []


OTHERS = {
    "a layer of another name": (swapped, "missing *params/dense/kernel"),
    "slots of another optimizer": (lambda: otherwise(keras.optimizers.Adadelta()), "missing *opt_state/"),
    "slots of another setting": (
        lambda: otherwise(keras.optimizers.Adam(amsgrad=True)),
        "missing *opt_state/",
    ),
    "another shape": (build, "unexpected *params/layers/dense"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_another_structure_assigns_nothing(newer, other):
    make, words = OTHERS[other]
    model = make()
    before = model.get_weights()
    with pytest.raises(kfb.StructureMismatchError, match=words):
        kfb.restore(newer[0], model)
    assert all(np.array_equal(one, two) for one, two in zip(model.get_weights(), before, strict=True))


def test_weights_alone_are_taken_whatever_the_optimizer(newer):
    path, wrote = newer
    model = keras.Sequential([keras.Input((2,)), *trained().layers])
    kfb.restore(path, model)
    assert all(map(np.array_equal, model.get_weights(), wrote.get_weights()))
