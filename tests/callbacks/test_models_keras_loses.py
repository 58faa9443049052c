"""Models whose weights Keras's `OrbaxCheckpoint` loses, or that it can't save: ours come back whole.

Each is fitted with `TrainStateCheckpoint`, in a process that built others before, and read back in one
that built more: under other automatic names.
"""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from tests.support.cases import TREES, differing

X = np.random.default_rng(0).standard_normal((12, 4)).astype("float32")
Y = np.random.default_rng(1).standard_normal((12, 2)).astype("float32")


def compiled(model, **options):
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=2)
    model.compile(**{"optimizer": optimizer, "loss": "mse", "metrics": ["mae"], **options})
    return model


def sequential():
    head = [layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    return compiled(keras.Sequential([keras.Input((4,)), *head]))


@keras.saving.register_keras_serializable("tests")
class WithConfig(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units, self.hidden, self.out = units, layers.Dense(units), layers.Dense(2)

    def build(self, shape):
        self.hidden.build(shape)
        self.out.build((*shape[:-1], self.units))

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class WithoutConfig(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden, self.drop, self.out = layers.Dense(units), layers.Dropout(0.2), layers.Dense(2)

    def call(self, x, training=False):
        return self.out(self.drop(self.hidden(x), training=training))


class Weighted(layers.Layer):
    """A variable ``w`` beside a sublayer ``w``."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), name="w", initializer="ones")
        self.inner = layers.Dense(2, name="w")
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x) * self.scale


def with_config():
    model = WithConfig()
    model.build((None, 4))
    return compiled(model)


def without_config():
    model = WithoutConfig(3)
    model(X[:1])
    return compiled(model)


def variable_beside_layer():
    return compiled(keras.Sequential([keras.Input((4,)), Weighted()]))


def two_outputs_one_metric():
    inputs = keras.Input((4,))
    outputs = {"left": layers.Dense(2)(inputs), "right": layers.Dense(2)(inputs)}
    return compiled(keras.Model(inputs, outputs), metrics={"left": ["mae"], "right": ["mae"]})


def equal_paths():
    """Two layers whose variables Keras gives one path."""
    inputs = keras.Input((4,))
    blocks = [keras.Sequential([layers.Dense(4, name="same")], name=name) for name in ("left", "right")]
    for block in blocks:
        block.layers[0].build((None, 4))
    x = blocks[1](blocks[0](inputs))
    return compiled(keras.Model(inputs, layers.Dense(2)(x)))


BUILDS = [sequential, with_config, without_config, variable_beside_layer, two_outputs_one_metric, equal_paths]
NO_CONFIG = (without_config, variable_beside_layer)  # of classes that Keras can't find by name
FIT = {"x": X, "batch_size": 4, "verbose": 0, "shuffle": False}


def targets(build):
    return {"left": Y, "right": Y} if build is two_outputs_one_metric else Y


@pytest.fixture(scope="module", params=BUILDS, ids=lambda build: build.__name__)
def fitted(request, tmp_path_factory):
    """A folder that `fit` wrote, what builds its model, and its final state."""
    folder, build = tmp_path_factory.mktemp("fit"), request.param
    layers.Dense(1), keras.Sequential(), keras.optimizers.Adam()  # moves Keras's counters of names
    model = build()
    saver = kfb.callbacks.TrainStateCheckpoint(folder, save_freq=2)
    model.fit(y=targets(build), epochs=2, callbacks=[saver], **FIT)
    return folder, build, trees(kfb.TrainState.from_keras(model))


def trees(state):
    return {tree: getattr(state, tree) for tree in TREES}


@pytest.mark.slow
def test_it_comes_back_into_a_model_of_other_names(fitted):
    folder, build, wanted = fitted
    layers.Dropout(0.5)
    other = build()
    kfb.restore(folder, other)  # its optimizer isn't built yet
    got = trees(kfb.TrainState.from_keras(other, batch=(X[:4], _batch(build))))
    assert differing({**got, "metrics": {}}, {**wanted, "metrics": {}}) == []


def _batch(build):
    y = targets(build)
    return {name: leaf[:4] for name, leaf in y.items()} if isinstance(y, dict) else y[:4]


def test_it_loads_from_the_root_and_from_a_step(fitted):
    folder, build, wanted = fitted
    newest = folder / str(kfb.CheckpointManager(folder).latest_step)
    if build in NO_CONFIG:
        with pytest.raises(kfb.CheckpointError, match="config"):
            kfb.load_model(folder)
        return
    for path in (folder, newest):
        got = trees(kfb.TrainState.from_keras(kfb.load_model(path), batch=(X[:4], _batch(build))))
        assert differing({**got, "metrics": {}}, {**wanted, "metrics": {}}) == []


# --- a layer renamed, one added, another optimizer


CHANGES = {
    "renamed": lambda: compiled(keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")])),
    "added": lambda: compiled(keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(2)])),
    "optimizer": lambda: compiled(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), optimizer="sgd"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_told_what_differs_and_keeps_its_weights(tmp_path, change):
    model = compiled(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    other = CHANGES[change]()
    before = other.get_weights()
    with pytest.raises(kfb.StructureMismatchError, match=r"missing|unexpected"):
        kfb.restore(tmp_path / "one", other)
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


# --- eight devices there, one here


SHARDED = """
from tests import conftest
import jax, numpy as np, keras_flax_bridge as kfb
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("data",))
tree = {"a": np.arange(32.0, dtype="float32").reshape(8, 4), "b": np.arange(3)}
put = {"a": NamedSharding(mesh, P("data")), "b": NamedSharding(mesh, P())}
assert len(jax.devices()) == 8
kfb.save(FOLDER, jax.device_put(tree, put), layout=LAYOUT)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_what_eight_devices_saved_one_reads(tmp_path, layout):
    code = SHARDED.replace("FOLDER", repr(str(tmp_path / "one"))).replace("LAYOUT", repr(layout))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, **flags})
    got = kfb.restore(tmp_path / "one", {"a": np.zeros((8, 4), "float32"), "b": np.zeros(3, int)}, cast=True)
    assert np.array_equal(got["a"], np.arange(32.0).reshape(8, 4))
    assert len(got["a"].sharding.device_set) == 1
    assert kfb.verify(tmp_path / "one").ok
