"""Nothing in a file is run, and no name in one acts on whoever reads it; see docs/security.md."""

import contextlib
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from keras.src.backend.common.global_state import set_global_attribute

import keras_flax_bridge as kfb
from keras_flax_bridge import cli, keras_internals, migrate
from keras_flax_bridge.checkpoint import keras_files
from keras_flax_bridge.interop.module_config import Maker
from keras_flax_bridge.migrate.transforms import from_json
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree import untrusted
from keras_flax_bridge.tree.untrusted import tables
from tests.support import hostile

PACKAGE = Path(kfb.__file__).parent


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


# --- optimizers


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A `.keras` file and a state of a model that optax trains."""
    model = hostile.small(kfb.OptaxOptimizer("adamw", learning_rate=1e-3))
    path = tmp_path_factory.mktemp("good") / "good.keras"
    model.save(path)
    return path, kfb.TrainState.from_keras(model)


def optimizers(mark):
    """Configs of an `OptaxOptimizer` that would leave a mark, or reach what no file may reach."""
    code, command = hostile.code(mark), {"learning_rate": None, "command": f"touch {mark}"}
    schedule = {"module": "keras_flax_bridge.optimizers.optax_factories", "class_name": "OptaxSchedule"}
    schedule |= {"registered_name": "keras_flax_bridge>OptaxSchedule"}
    get_file = {"fname": str(mark), "origin": f"file://{__file__}", "learning_rate": None}
    return {
        "a way through optax": {"transformation": f"{hostile.way_to_os()}.system", **command},
        "a private name": {"transformation": "_src.alias.adam"},
        "an attribute of a function": {"transformation": "adam.__globals__"},
        "a dunder": {"transformation": "__loader__.get_data", "path": "/etc/hostname", "learning_rate": None},
        "a public function that makes nothing": {"transformation": "apply_updates", "learning_rate": None},
        "a number": {"transformation": 7},
        "nothing": {"transformation": None},
        "a list": {"transformation": ["adam"]},
        "a lambda": {"transformation": code, "learning_rate": None},
        "a lambda in an argument": {"transformation": "adamw", "mask": code},
        "a lambda in a list": {"transformation": "adamw", "mask": [[{"deep": code}]]},
        "a lambda as learning rate": {"transformation": "adamw", "learning_rate": code},
        "a lambda in a schedule": {
            "transformation": "adamw",
            "learning_rate": {**schedule, "config": {"schedule": code}},
        },
        "a schedule by name": {
            "transformation": "adamw",
            "learning_rate": {**schedule, "config": {"schedule": "os.system"}},
        },
        "a function of Keras in a schedule": {
            "transformation": "adamw",
            "learning_rate": {**schedule, "config": {"schedule": hostile.function("keras.ops", "relu")}},
        },
        "os.system": {"transformation": hostile.function("os", "system"), **command},
        "posix.system": {"transformation": hostile.function("posix", "system"), **command},
        "exec": {"transformation": hostile.function("builtins", "exec"), "learning_rate": None},
        "subprocess": {"transformation": hostile.function("subprocess", "run"), "learning_rate": None},
        "a download": {"transformation": hostile.function("keras.utils", "get_file"), **get_file},
        "a function of Keras": {
            "transformation": hostile.function("keras.utils", "set_random_seed"),
            "seed": 1,
        },
        "an operation of Keras": {"transformation": hostile.function("keras.ops", "zeros"), "shape": [3]},
        "a layer": {
            "transformation": {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}},
            "learning_rate": None,
        },
        "a private module of ours": {
            "transformation": hostile.function("keras_flax_bridge.cli.files.ejecting", "eject"),
            "learning_rate": None,
        },
    }


ROWS = list(optimizers(Path("mark")))


def with_optimizer(config):
    def change(model):
        found = model["compile_config"]["optimizer"]
        kept = {"name": "x", "learning_rate": 0.1}
        found["config"] = {**kept, **config}
        return model

    return change


def quietly(door):
    """Runs a door; what it raises is no matter, as long as it is one of ours or Keras's."""
    with contextlib.suppress(ValueError, TypeError, kfb.BridgeError):
        door()
        return "no error"
    return "an error"


@pytest.mark.parametrize("row", ROWS)
def test_no_config_of_an_optimizer_runs_anything(row, good, tmp_path):
    path, _ = good
    mark = tmp_path / "mark"
    bad = hostile.changed_file(path, tmp_path / "bad.keras", with_optimizer(optimizers(mark)[row]))
    with pytest.raises(kfb.CheckpointError, match=re.escape(str(bad))):
        kfb.load_model(bad)
    assert quietly(lambda: keras.saving.load_model(bad)) == "an error"
    assert not mark.exists()


@pytest.mark.parametrize("row", ["a way through optax", "a lambda in an argument", "a download"])
def test_no_door_runs_anything(row, good, tmp_path, capsys):
    (path, state), mark = good, tmp_path / "mark"
    change = with_optimizer(optimizers(mark)[row])
    file = hostile.changed_file(path, tmp_path / "bad.keras", change)
    folder = hostile.changed_checkpoint(tmp_path / "bad", state, change)
    doors = {
        "restore a file": lambda: kfb.restore(file, hostile.small()),
        "load a checkpoint": lambda: kfb.load_model(folder),
        "restore a checkpoint": lambda: kfb.restore(folder, state),
        "verify": lambda: kfb.verify(folder),
        "restore into a module": lambda: kfb.restore(folder, nnx.Linear(4, 2, rngs=nnx.Rngs(0))),
        "inspect a file": lambda: cli.main(["inspect", str(file)]),
        "inspect a checkpoint": lambda: cli.main(["inspect", str(folder)]),
        "diff": lambda: cli.main(["diff", str(file), str(folder)]),
        "convert a file": lambda: cli.main(["convert", str(file), str(tmp_path / "a.safetensors")]),
        "convert a checkpoint": lambda: cli.main(["convert", str(folder), str(tmp_path / "b.keras")]),
        "eject": lambda: cli.main(["eject", str(file), str(tmp_path / "out.py")]),
        "plan": lambda: cli.main(["plan", str(file)]),
    }
    for door in doors.values():
        quietly(door)
    assert not mark.exists()
    assert not (tmp_path / "out.py").exists()


def make_sgd(learning_rate, times=1.0):
    return optax.sgd(learning_rate * times)


def test_what_a_user_passes_or_registered_still_works(tmp_path):
    registered = keras.saving.register_keras_serializable("tests")(make_sgd)
    for given, arguments in (
        ("contrib.muon", {}),
        ("adamw", {"weight_decay": 0.1}),
        (registered, {"times": 2.0}),
    ):
        model = hostile.small(kfb.OptaxOptimizer(given, learning_rate=0.1, **arguments))
        model.save(tmp_path / "model.keras")
        assert kfb.load_model(tmp_path / "model.keras").optimizer.transformation == given
    assert kfb.OptaxOptimizer(make_sgd, 0.1).transformation is make_sgd
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 5)
    model = hostile.small(kfb.OptaxOptimizer("adam", learning_rate=schedule))
    model.save(tmp_path / "schedule.keras")
    assert float(kfb.load_model(tmp_path / "schedule.keras").optimizer.learning_rate) == pytest.approx(0.1)


# --- Keras's configs


def layer(**config):
    return {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2, **config}}


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
    for config in (KERAS[row], layer(activation=KERAS[row]), {"a": [[KERAS[row]]]}):
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
    for door in (lambda: kfb.load_model(bad), lambda: kfb.restore(bad, model)):
        with pytest.raises(kfb.CheckpointError, match="Lambda"):
            door()
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
        json.loads(json.dumps(layer(dtype={"module": "keras", "class_name": "DTypePolicy"}))), "x"
    )


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


# --- Flax modules


MAKERS = {
    "a dunder of jax.nn": {"name": "jax.nn.__getattribute__"},
    "a module of jax.nn": {"name": "jax.nn.initializers"},
    "an activation as a module": {"name": "jax.nn.relu"},
    "a private class": {"name": "flax.nnx._Node"},
    "a function of nnx": {"name": "flax.nnx.jit"},
    "a way through nnx": {"name": "flax.nnx.bridge.ToNNX"},
    "another package": {"name": "os.system"},
    "a builtin": {"name": "builtins.exec"},
    "a class that makes no module": {"name": "registered:keras_flax_bridge>OptaxOptimizer"},
    "linen of a function": {"linen": "jax.nn.relu", "fields": {"x": 1}},
    "linen of a class of ours": {"linen": "registered:keras_flax_bridge>Maker", "fields": {"target": "x"}},
    "no name": {"name": ["os"]},
    "nothing": {},
    "two kinds": {"name": "flax.nnx.Linear", "dtype": "float32"},
    "another kind": {"call": "os.system"},
    "a list": ["os.system"],
    "a dtype of objects": {"dtype": "object"},
    "a dtype that is parsed": {"dtype": "i4,(2,3)f8"},
}


@pytest.mark.parametrize("row", MAKERS)
def test_what_may_not_make_a_module(row):
    with pytest.raises(kfb.UnsupportedLayerError):
        Maker.from_config({"target": MAKERS[row]})


VALUES = {"an activation as a module", "a class that makes no module"}  # which may be arguments


@pytest.mark.parametrize("row", [row for row in MAKERS if row not in VALUES])
def test_what_may_not_be_an_argument_of_a_module(row):
    for argument in (MAKERS[row], {"list": [{"tuple": [MAKERS[row]]}]}, {"dict": [["a", MAKERS[row]]]}):
        with pytest.raises(kfb.UnsupportedLayerError):
            Maker.from_config({"target": {"name": "flax.nnx.Linear"}, "args": [argument]})


MODULES = {
    "a lambda": lambda mark: hostile.code(mark),
    "a function of Keras": lambda mark: hostile.function("keras.utils", "set_random_seed"),
    "a command": lambda mark: hostile.function("os", "system"),
    "text": lambda mark: "os.system",
    "a layer": lambda mark: layer(),
}


@pytest.mark.parametrize("kind", [kfb.NNXLayer, kfb.LinenLayer])
@pytest.mark.parametrize("row", MODULES)
def test_the_module_of_a_layer_is_a_maker_of_ours(row, kind, tmp_path):
    config = {
        "module": MODULES[row](tmp_path / "mark"),
        "args": [1],
        "kwargs": {"seed": 3},
        "method": "__call__",
    }
    written = {
        "module": "x",
        "class_name": kind.__name__,
        "registered_name": f"keras_flax_bridge>{kind.__name__}",
    }
    with pytest.raises((kfb.BridgeError, TypeError)):
        keras.saving.deserialize_keras_object({**written, "config": config})
    assert not (tmp_path / "mark").exists()


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)

    def encode(self, x):
        return x * 2

    def _hidden(self, x):
        return x

    size = property(lambda self: 3)


METHODS = [
    "_hidden",
    "size",
    "clone",
    "bind",
    "copy",
    "make_rng",
    "__init__",
    "__getattribute__",
    "__class__",
]
METHODS += ["encode.__globals__", "", "missing", 3, None]


@pytest.mark.parametrize("name", METHODS, ids=str)
def test_a_method_is_a_public_one_of_the_class(name):
    with pytest.raises(kfb.StructureMismatchError, match="method"):
        kfb.LinenLayer(Encoder(), method=name)


@pytest.mark.parametrize("name", ["set_attributes", "train", "iter_modules", "sow"])
def test_what_every_module_has_is_no_method_of_it(name):
    with pytest.raises(kfb.StructureMismatchError, match="method"):
        kfb.NNXLayer(nnx.Linear, args=(4, 2), method=name)


def test_a_public_method_is_called():
    assert kfb.LinenLayer(Encoder(), method="encode")(np.ones((1, 4)))[0, 0] == 2


# --- weight maps


TRANSFORMS = {
    "another kind": ["__class__", 1],
    "no kind": [["reshape"], [1], [2]],
    "text": ["reshape", "os", "system"],
    "a dict": ["split", 0, {"a": 1}],
    "a fraction": ["transpose", [0.5]],
    "too few": ["merge", 0],
    "too many": ["transpose", [0], [1]],
}


@pytest.mark.parametrize("row", TRANSFORMS)
def test_transforms_are_of_a_table_and_of_numbers(row, tmp_path):
    with pytest.raises((KeyError, ValueError, TypeError)):
        from_json(TRANSFORMS[row])
    pair = {"keras": ["a"], "flax": ["b"], "transforms": [TRANSFORMS[row]], "kind": "param"}
    whole = {"pairs": [pair], "seeds": [], "only_keras": [], "only_flax": [], "notes": [], "linen": False}
    (tmp_path / "map.json").write_text(json.dumps(whole))
    with pytest.raises(kfb.CheckpointError):
        migrate.WeightMap.load(tmp_path / "map.json")
