"""Nothing in a file is run, and no name in one acts on whoever reads it; see docs/security.md."""

import contextlib
import json

import jax
import keras
import numpy as np
import optax
import pytest
from keras.src.backend.common.global_state import set_global_attribute

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import keras_files
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree import untrusted
from keras_flax_bridge.tree.untrusted import tables
from tests.support import hostile

# --- the tables are decisions


def public(module):
    """The functions that a module shows; classes of states and types too many to list aside."""
    for name, thing in vars(module).items():
        is_state = isinstance(thing, type) and name not in tables.OPTAX
        if not name.startswith("_") and callable(thing) and not is_state:
            yield name


@pytest.mark.parametrize("space", ["", "contrib", "schedules"])
def test_every_function_of_optax_is_allowed_or_refused(space):
    module = {"": optax, "contrib": optax.contrib, "schedules": optax.schedules}[space]
    names = {f"{space}.{name}".strip(".") for name in public(module)}
    assert sorted(names - tables.OPTAX.keys() - tables.OPTAX_REFUSED) == []


def test_no_name_of_optax_is_both_allowed_and_refused():
    assert not tables.OPTAX.keys() & tables.OPTAX_REFUSED


# names that older versions of optax lack
NEWER = ("galore", "madgrad", "scale_by_galore", "scale_by_madgrad")
NEWER = {*(f"contrib.{name}" for name in NEWER), "measure_with_ema", "monitor", "signum"}
OTHER_VERSIONS = set() if compat.has("galore, madgrad, signum, monitor, measure_with_ema") else NEWER


def test_every_allowed_name_is_there_or_known_to_be_of_another_version():
    lacking = set()
    for name in tables.OPTAX:
        space, _, last = name.rpartition(".")
        if last not in vars(getattr(optax, space) if space else optax):
            lacking.add(name)
    assert lacking == OTHER_VERSIONS


def test_every_function_of_jax_nn_is_allowed_or_refused():
    refused = {"get_scaled_dot_general_config"}
    assert set(public(jax.nn)) - tables.JAX_NN == refused


@pytest.mark.parametrize(
    "name",
    sorted(
        n for n, kind in tables.OPTAX.items() if kind == tables.TRANSFORMATION and n not in OTHER_VERSIONS
    ),
)
def test_an_allowed_name_is_the_function_of_that_name(name):
    space, _, last = name.rpartition(".")
    assert untrusted.optax_factory(name) is getattr(getattr(optax, space) if space else optax, last)


def test_an_allowed_name_that_this_optax_lacks_is_an_error(monkeypatch):
    monkeypatch.delattr(optax, "adan")
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"optax .* lacks"):
        kfb.OptaxOptimizer("adan", 0.1)


def test_the_schedule_of_a_name_is_no_transformation():
    with pytest.raises(kfb.UnsupportedOptimizerError, match="of a schedule"):
        kfb.OptaxOptimizer("cosine_decay_schedule", init_value=0.1, decay_steps=3)


KERAS = {
    "a lambda": {"class_name": "__lambda__", "config": {}},
    "a type of TensorFlow": {"class_name": "__typespec__", "config": [], "spec_name": "x", "module": "os"},
    "a download": hostile.function("keras.utils", "get_file"),
    "the switch of safe mode": hostile.function("keras.config", "enable_unsafe_deserialization"),
    "the reader of configs": hostile.function("keras.activations", "deserialize"),
    "a function as a class": {"module": "keras.utils", "class_name": "get_file", "config": {}},
    "an old module of Keras": hostile.function("keras._legacy.preprocessing.text", "tokenizer_from_json"),
    "a function inside Keras": hostile.function("keras.src.utils.file_utils", "get_file"),
    "a layer that loads a file": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {}},
    "the same, by its name alone": {"class_name": "TFSMLayer", "config": {}},
    "a pickle": {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}},
    "a package that would be imported": {"module": "keras_hub.layers", "class_name": "X", "config": {}},
    "a module that would be imported": {"module": "keras.src.nowhere", "class_name": "X", "config": {}},
    "os": {"module": "os", "class_name": "system", "config": {}},
    "ours": {"module": "keras_flax_bridge.cli.files.ejecting", "class_name": "Ejected", "config": {}},
    "no text": {"module": ["os"], "class_name": "x", "config": {}},
    "no text for a class": {"module": "keras.layers", "class_name": ["x"], "config": {}},
    "no text for a function": {"module": "keras.ops", "class_name": "function", "config": 3},
}


@pytest.mark.parametrize("row", KERAS)
def test_what_a_config_may_not_name(row):
    for config in (KERAS[row], hostile.layer(activation=KERAS[row]), {"a": [[KERAS[row]]]}):
        with pytest.raises(kfb.CheckpointError, match="names"):
            untrusted.require_safe(config, "file")


def test_a_deep_config_is_an_error():
    config: dict = {}
    for _ in range(100_000):
        config = {"a": config}
    with pytest.raises(kfb.CheckpointError, match="levels"):
        untrusted.require_safe(config, "file")


def test_nothing_is_imported_because_a_config_names_it(tmp_path, monkeypatch):
    (tmp_path / "keras_cv").mkdir()
    (tmp_path / "keras_cv" / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"module": "keras_cv", "class_name": "X", "config": {}}
    with pytest.raises(kfb.CheckpointError, match="keras_cv"):
        keras_internals.deserialized(config, "file")
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def unsafe():
    """A caller who has switched off Keras's safe mode for the whole process."""
    keras.config.enable_unsafe_deserialization()
    yield
    set_global_attribute("safe_mode_saving", None)


def test_safe_mode_is_on_whatever_the_caller_has_set(unsafe, tmp_path):
    mark, model = tmp_path / "mark", hostile.small()
    model.save(tmp_path / "good.keras")

    def change(config):
        config["config"]["layers"].append(hostile.lambda_layer(mark))
        return config

    bad = hostile.changed_file(tmp_path / "good.keras", tmp_path / "bad.keras", change)
    with pytest.raises(kfb.CheckpointError, match="Lambda"):
        kfb.load_model(bad)
    wanted = [np.asarray(weight.value) for weight in model.weights]
    model.set_weights([np.zeros_like(weight) for weight in wanted])
    kfb.restore(bad, model)  # a model that is built reads no config
    for weight, value in zip(model.weights, wanted, strict=True):
        np.testing.assert_array_equal(weight.value, value)
    with keras_internals.safe_mode(), pytest.raises(ValueError, match="lambda"):
        keras.saving.deserialize_keras_object(hostile.code(mark))
    assert isinstance(kfb.load_model(tmp_path / "good.keras"), keras.Model)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        keras.saving.load_model(bad)  # what the caller has asked for
    assert mark.exists()


@pytest.mark.parametrize("name", ["bad.h5", "bad.hdf5", "bad.zip", "bad"])
def test_keras_gets_no_file_whose_config_was_not_looked_at(name, good, tmp_path):
    (tmp_path / name).write_bytes(good[0].read_bytes())
    with pytest.raises(kfb.CheckpointError, match="without the suffix"):
        keras_files.load_model(tmp_path / name)


def test_layers_of_other_parts_of_keras_pass():
    untrusted.require_safe({"module": "keras.utils", "class_name": "FeatureSpace", "config": {}}, "file")
    untrusted.require_safe(
        json.loads(json.dumps(hostile.layer(dtype={"module": "keras", "class_name": "DTypePolicy"}))), "x"
    )


@pytest.mark.slow
def test_configs_that_keras_writes_pass():
    inputs = keras.Input((8, 4))
    x = keras.layers.Dense(4, activation="gelu", kernel_initializer="he_normal", kernel_regularizer="l2")(
        inputs
    )
    x = keras.layers.MultiHeadAttention(2, 2)(x, x) + keras.ops.relu(x) * np.float32(2)
    x = keras.layers.Bidirectional(keras.layers.LSTM(3))(keras.ops.reshape(x, (-1, 8, 4))[:, 1:, ...])
    model = keras.Model(inputs, keras.layers.Activation(keras.ops.sigmoid)(x))
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(keras.optimizers.Adam(decay), keras.losses.Huber(), metrics=["mae", keras.metrics.AUC()])
    assert keras_internals.deserialized(
        json.loads(json.dumps(keras.saving.serialize_keras_object(model))), "x"
    ).compiled
