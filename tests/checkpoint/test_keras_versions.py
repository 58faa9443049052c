"""A config of a newer Keras that this one can't read: the error names the version that wrote it."""

import json
import shutil
import zipfile
import zlib

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint.keras_versions import writer
from keras_flax_bridge.checkpoint.orbax_io.api import MARK, OURS, OURS_SUM

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


def newer_file(path, version=NEWER):
    build().save(path.with_name("whole.keras"))
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
    assert writer(tmp_path / name).call in error.value.fix


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
    model = build()
    model.load_weights(newer_file(tmp_path / "newer.keras"))
    shutil.rmtree(path)
