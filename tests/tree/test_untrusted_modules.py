"""What a config may make a Flax module of, and a weight map move by."""

import json

import flax.linen as nn
import keras
import numpy as np
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.interop.module_config import Maker
from keras_flax_bridge.migrate.transforms import from_json
from tests.support import hostile

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
    "a layer": lambda mark: hostile.layer(),
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
