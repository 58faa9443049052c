"""Preset folders as KerasHub writes them, of a small model of this process; those of KerasHub: contracts."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb


@keras.saving.register_keras_serializable("presets")
class Tokenizer(layers.Layer):
    """Words in a file; its folder has the name of its config, as a tokenizer's of KerasHub."""

    def __init__(self, words=None, config_file="tokenizer.json", **options):
        super().__init__(**options)
        self.words, self.config_file, self.built = words, config_file, True

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "config_file": self.config_file}

    def save_assets(self, folder):
        pathlib.Path(folder, "words.txt").write_text("\n".join(self.words))

    def load_assets(self, folder):
        self.words = pathlib.Path(folder, "words.txt").read_text().split("\n")


def build(words=("a", "b")):
    inputs = keras.Input((3,))
    x = Tokenizer(list(words) if words else None, name="tokens")(inputs)
    return keras.Model(inputs, layers.Dense(1, name="out")(layers.Dense(2, name="hidden")(x)))


def write(folder, model, *, shards=False):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(model)))
    if shards:
        model.save_weights(folder / "model.weights.json", max_shard_size=3e-8)
    else:
        model.save_weights(folder / "model.weights.h5")
    (folder / "assets" / "tokenizer").mkdir(parents=True)
    model.get_layer("tokens").save_assets(folder / "assets" / "tokenizer")
    return folder


def same(a, b):
    equal = all(map(np.array_equal, a.get_weights(), b.get_weights()))
    return equal and a.get_layer("tokens").words == b.get_layer("tokens").words


@pytest.mark.parametrize("shards", [False, True])
def test_a_preset_is_loaded_and_restored(tmp_path, shards):
    model, other = build(), build(None)
    folder = write(tmp_path / "preset", model, shards=shards)
    assert len(list(folder.glob("model_*.h5"))) == 2 * shards
    assert same(kfb.load_model(folder), model)
    other.compile("adam", "mse")
    assert kfb.restore(folder, other) is other
    assert same(other, model)
    like = kfb.TrainState.from_keras(build(), optimizer="sgd")
    state = kfb.restore(folder, like, include=["params"])
    assert np.array_equal(state.params["hidden"]["kernel"], model.get_layer("hidden").kernel)
    report = kfb.verify(folder)
    assert (report.leaves, len(report.unchecked), report.damaged) == (4, 4, {})


def test_a_preset_without_files_leaves_those_of_a_model(tmp_path):
    folder = write(tmp_path / "preset", build())
    (folder / "assets" / "tokenizer" / "words.txt").unlink()
    with pytest.raises(kfb.CheckpointError, match=r"FileNotFoundError.*words\.txt"):
        kfb.load_model(folder)
    (folder / "assets" / "tokenizer").rmdir()
    (folder / "assets").rmdir()
    assert kfb.restore(folder, build(["q"])).get_layer("tokens").words == ["q"]


def larger():
    return keras.Sequential([keras.Input((3,)), layers.Dense(5, name="hidden"), layers.Dense(1, name="out")])


def config(change):
    """A change of the config of a preset."""

    def spoil(folder, outside):
        found = json.loads((folder / "config.json").read_text())
        change(found, outside)
        (folder / "config.json").write_text(json.dumps(found))

    return spoil


def of_layer(kind, **arguments):
    def change(found, outside):
        layer = next(one for one in found["config"]["layers"] if one["class_name"] == "Tokenizer")
        layer.update(kind)
        layer["config"] |= {name: value.format(outside=outside) for name, value in arguments.items()}

    return config(change)


def shard(folder, outside):
    names = {"/layers/dense/vars": ["../outside/model_00000.weights.h5"]}
    (folder / "model.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.weights.h5").rename(outside / "model_00000.weights.h5")


def link(folder, outside):
    (outside / "words.txt").write_text("secret")
    (folder / "assets" / "tokenizer" / "words.txt").unlink()
    (folder / "assets" / "tokenizer" / "words.txt").symlink_to(outside / "words.txt")


def hostile_weights(folder, outside):
    (folder / "model.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


LAMBDA = {"class_name": "__lambda__", "config": {"value": "x"}, "registered_name": None}
LOOKUP = {"module": "keras.layers", "class_name": "StringLookup", "registered_name": None}
SPOILT = {
    "a shard elsewhere": (shard, "a file of the name"),
    "a link": (link, "points outside"),
    "a lambda": (of_layer(LAMBDA), "code"),
    "a class that is not registered": (
        of_layer({"registered_name": "os>system", "module": "os"}),
        "registered",
    ),
    "a vocabulary elsewhere": (of_layer(LOOKUP, vocabulary="{outside}/words.txt"), "a file that"),
    "files elsewhere": (of_layer({}, config_file="../../outside.json"), "config_file"),
    "a list": (lambda folder, outside: (folder / "config.json").write_text("[]"), "a JSON object"),
    "no weights": (hostile_weights, "HDF5"),
    "weights of another model": (
        lambda folder, outside: larger().save_weights(folder / "model.weights.h5"),
        "can't be read",
    ),
}


OF_FILES = [SPOILT[name][0] for name in ("a shard elsewhere", "a link", "weights of another model")]


@pytest.mark.parametrize(("spoil", "match"), SPOILT.values(), ids=SPOILT)
def test_a_hostile_preset_is_refused(tmp_path, spoil, match):
    (tmp_path / "outside").mkdir()
    model = build(["u"])
    weights = model.get_weights()
    folder = write(tmp_path / "preset", build())
    spoil(folder, tmp_path / "outside")
    with pytest.raises(kfb.CheckpointError, match=match):
        kfb.load_model(folder)
    if spoil in OF_FILES:  # of which a restore into a model asks too
        with pytest.raises(kfb.CheckpointError, match=match):
            kfb.restore(folder, model)
    assert model.get_layer("tokens").words == ["u"]
    assert all(map(np.array_equal, model.get_weights(), weights))


def test_options_of_a_restore_are_not_dropped(tmp_path):
    folder = write(tmp_path / "preset", build())
    with pytest.raises(kfb.ArgumentError, match="include="):
        kfb.restore(folder, build(), include=["params"])
    with pytest.raises(kfb.ArgumentError, match="step=3"):
        kfb.load_model(folder, step=3)
    with pytest.raises(kfb.StructureMismatchError, match="unbuilt"):
        kfb.restore(folder, keras.Sequential([layers.Dense(2)]))
