"""Exclusions from weight decay survive in checkpoints, in other files and in runs that go on."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import model_configs
from keras_flax_bridge.checkpoint.locating import candidates
from keras_flax_bridge.checkpoint.readers import opened
from keras_flax_bridge.cli.files import converting
from keras_flax_bridge.keras_internals import exclusions
from tests.support import resumable_runs as resuming
from tests.support.capabilities import where
from tests.support.exclusions import (
    OPTIMIZERS,
    biases,
    build,
    by_optimizer,
    check,
    compiled,
    decaying,
)

X = np.ones((8, 3), "float32")


# --- on disk


@pytest.mark.every(fast=2)
@by_optimizer
def test_load_model_puts_them_back(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    layers.Dense(1)  # moves Keras's counters of names
    loaded = kfb.TrainState.from_keras(kfb.load_model(tmp_path / "one"))
    check(loaded)
    kfb.save(tmp_path / "two", loaded)
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two")))


def test_load_model_puts_back_those_of_weights_that_are_frozen(tmp_path):
    model = build()
    model.layers[0].trainable = False
    compiled("pattern", model)
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    loaded = kfb.load_model(tmp_path / "one")
    loaded.layers[0].trainable = True
    loaded.compile(keras_internals.rebuilt(loaded.optimizer, {id(v): v for v in loaded.weights}), "mse")
    check(kfb.TrainState.from_keras(loaded))


@pytest.mark.every(fast=2)
@by_optimizer
def test_restore_and_resume_into_a_compiled_model(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    check(kfb.TrainState.from_keras(kfb.restore(tmp_path / "one", compiled(kind))))


def test_names_stay_names(tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled("several_names")))
    optimizer = kfb.load_model(tmp_path / "one").optimizer
    assert not keras_internals.excludes_variables(optimizer)
    assert set(exclusions(optimizer).pattern.split("|")) == {"bias", "gamma", "beta"}


def test_older_readers_find_the_config_that_they_know(tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled("names")))
    config = opened(tmp_path / "one").metadata.model
    own = keras.saving.serialize_keras_object(build()).keys() | {"compile_config"}
    assert config.keys() - own == {"optimizer_extras"}
    assert type(keras.saving.deserialize_keras_object(config).optimizer) is K.AdamW


def test_checkpoints_without_the_field_load(tmp_path):
    config = model_configs.of_model(compiled("names"))
    del config["optimizer_extras"]
    loaded = model_configs.build(config, tmp_path)
    assert exclusions(loaded.optimizer) == (None, frozenset())


BAD = {
    "no_dict": ([], "a list"),
    "no_dict_inside": ({"exclude_from_weight_decay": ["bias"]}, "a list"),
    "another_optimizer": ({"exclude_from_weight_decay": {"inner": {}}}, "'inner', which is not an optimizer"),
    "no_dict_of_lists": ({"exclude_from_weight_decay": {"": "bias"}}, "a str"),
    "no_list": ({"exclude_from_weight_decay": {"": {"names": "bias"}}}, "names: a str"),
    "no_word": ({"exclude_from_weight_decay": {"": {"names": [3]}}}, "names: a int"),
    "slow_pattern": ({"exclude_from_weight_decay": {"": {"names": ["(b+)+$"]}}}, r"\(b\+\)"),
    "no_pattern": ({"exclude_from_weight_decay": {"": {"names": ["("]}}}, "names"),
    "unknown_key": ({"exclude_from_weight_decay": {"": {"variables": ["dense/gain"]}}}, "dense/gain"),
    "no_key": ({"exclude_from_weight_decay": {"": {"variables": [["dense"]]}}}, "variables: a list"),
    "id": ({"exclude_from_weight_decay": {"": {"variables": [140234]}}}, "variables: a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_file_holds_is_checked(case, tmp_path):
    extras, message = BAD[case]
    model = compiled("names")
    config = json.loads(json.dumps({**model_configs.of_model(model), "optimizer_extras": extras}))
    with pytest.raises(kfb.CheckpointError, match=message):
        model_configs.build(config, tmp_path)


def test_unknown_fields_are_ignored(tmp_path):
    config = model_configs.of_model(compiled("names"))
    config["optimizer_extras"]["later"] = config["optimizer_extras"]["exclude_from_weight_decay"][""]["x"] = 1
    check(kfb.TrainState.from_keras(model_configs.build(config, tmp_path)))


# --- other kinds of files


def convert(source, target, kind, **options):
    return converting.convert(opened(source), target, kind, **options).notes


@pytest.mark.every(fast=2)
@pytest.mark.parametrize(
    "kind",
    [
        "names",
        pytest.param("pattern", marks=pytest.mark.slow),
        "variables",
        "scaled_variables",
        *where("MultiOptimizer", ["grouped"]),
    ],
)
def test_conversion_keeps_them(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    notes = convert(tmp_path / "one", tmp_path / "two.keras", "keras")
    assert any("exclusions from weight decay" in note for note in notes)
    keras.saving.load_model(tmp_path / "two.keras")  # to Keras it is a file as any other
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two.keras")))
    convert(tmp_path / "two.keras", tmp_path / "three.safetensors", "safetensors")
    convert(tmp_path / "three.safetensors", tmp_path / "four", "checkpoint")
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "four")))


@pytest.mark.slow
def test_conversion_without_slots_keeps_them(tmp_path):
    state = kfb.TrainState.from_keras(compiled("variables"))
    kfb.save(tmp_path / "one", state)
    convert(tmp_path / "one", tmp_path / "model.keras", "keras")
    kfb.save(tmp_path / "weights", {"params": state.params})
    notes = convert(
        tmp_path / "weights", tmp_path / "two.keras", "keras", model_file=tmp_path / "model.keras"
    )
    assert any("as the model starts them" in note for note in notes)
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two.keras")))


def test_keras_files_without_exclusions_are_keras_s_own(tmp_path):
    model = build()
    model.compile(decaying(), "mse")
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    assert not any("weight decay" in n for n in convert(tmp_path / "one", tmp_path / "two.keras", "keras"))
    with zipfile.ZipFile(tmp_path / "two.keras") as archive:
        assert archive.comment == b""


def written_by_keras(path, comment):
    model = compiled("names")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    return path


@pytest.mark.parametrize("comment", [b'{"keras_flax_bridge":', b'{"keras_flax_bridge":' + b"[" * 60_000])
def test_a_damaged_comment_of_a_keras_file_is_named(comment, tmp_path):
    path = written_by_keras(tmp_path / "one.keras", comment)
    with pytest.raises(kfb.CheckpointError, match=r"comment of the zip archive: got text .* not valid JSON"):
        kfb.load_model(path)


def test_comments_of_others_are_left_alone(tmp_path):
    path = written_by_keras(tmp_path / "one.keras", b"made by me")
    assert kfb.load_model(path).optimizer.weight_decay == 0.5


# --- training that breaks off


def without_loss(y, y_pred):
    """Gradients of zero."""
    return 0.0 * y_pred


class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["names", "variables", "scaled"])
def test_fit_goes_on_with_them(kind, tmp_path):
    def fit(*callbacks):
        model = build()
        model.compile(OPTIMIZERS[kind](model), without_loss)
        saver = kfb.callbacks.TrainStateCheckpoint(tmp_path / "run", save_freq=1)
        model.fit(X, X[:, :2], batch_size=2, verbose=0, shuffle=False, callbacks=[*callbacks, saver])
        return model

    with pytest.raises(KeyboardInterrupt):
        fit(Break())
    assert candidates(tmp_path / "run", None)
    model = fit()
    assert int(keras_internals.iterations(model.optimizer)) == 4
    for bias in biases(model):
        np.testing.assert_array_equal(bias, np.ones_like(bias))
    np.testing.assert_allclose(model.layers[1].kernel, np.full((4, 2), 0.95**4), rtol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_is_exact():
    assert kfb.verify_resume(resuming.excluded, resuming.shuffled, steps=(2, 2)).ok
