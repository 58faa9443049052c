"""What other versions of the dependencies wrote is read bit for bit, as `cross_versions` wrote it."""

import functools
import json

import jax
import keras
import numpy as np
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.cli.main import main
from keras_flax_bridge.startup import compat
from tests.support import cross_versions as cross
from tests.support import older_versions as older

LIKES = ("model", "packed", "kinds_tree", "optax", "module")


@pytest.fixture(params=cross.folders(), ids=lambda folder: folder.name)
def folder(request):
    return request.param


@functools.cache
def expected(folder):
    return json.loads((folder / "expected.json").read_text())


def needs_newer(folder):
    """The version of Keras that wrote configs which this one can't read; None where it can."""
    wrote = expected(folder)["versions"]["keras"]
    written = compat.release(wrote)
    lacking = [name for name in older.CONFIGS if not compat.has(name)]
    unknown = [name for name in lacking if written >= compat.release(compat.TABLE[name].since)]
    return wrote if unknown else None


@pytest.mark.parametrize("name", LIKES)
def test_every_leaf_is_restored_exactly(folder, name):
    wanted = expected(folder)["model" if name == "packed" else name]
    assert older.specs(kfb.restore(folder / name, older.LIKES[name]())) == wanted
    assert main(["verify", str(folder / name)]) == 0


def weights(model):
    """The weights and slots of a compiled model, without seeds, which Keras's files lack, and totals."""
    found = older.specs(kfb.TrainState.from_keras(model))
    return {path: spec for path, spec in found.items() if "seed_gen" not in path and "metrics" not in path}


def same_weights(folder, model, *, least=15):
    found = weights(model)
    wanted = expected(folder)["model"]
    assert {path: spec for path, spec in found.items() if wanted[path] != spec and path != ".step"} == {}
    assert len(found) > least


@pytest.mark.parametrize("name", ["model", "packed"])
def test_a_model_that_is_built_takes_it(folder, name):
    same_weights(folder, kfb.restore(folder / name, older.build()))


@pytest.mark.parametrize("name", ["model", "packed", "model.keras"])
def test_a_model_is_rebuilt_or_the_version_that_wrote_it_is_named(folder, name):
    newer = needs_newer(folder)
    if newer is None:
        return same_weights(folder, kfb.load_model(folder / name))
    with pytest.raises(kfb.CheckpointError, match=f"of Keras {newer}") as error:
        kfb.load_model(folder / name)
    assert f"to {newer} or newer" in error.value.fix


def test_a_weights_file_is_restored_exactly(folder):
    model = kfb.restore(folder / "model.weights.h5", older.build())
    same_weights(folder, model, least=5)


def test_keras_s_callback_is_restored_exactly(folder):
    if not (folder / "callback").exists():
        pytest.skip("a Keras without the callback wrote it")
    same_weights(folder, kfb.restore(folder / "callback", older.build()))


def test_a_written_source_runs_with_its_weights(folder):
    scope = {}
    exec((folder / "source.py").read_text(), scope)
    module = kfb.restore(folder / "module", scope["Model"](rngs=nnx.Rngs(0)))
    assert older.specs(module) == expected(folder)["module"]
    module.eval()
    np.testing.assert_allclose(module(older.X), expected(folder)["outputs"], atol=1e-6)


def test_an_optimizer_state_is_converted(folder):
    state = kfb.restore(folder / "optax", kfb.TrainState.from_keras(older.build()))
    back = older.specs(state.to_optax())
    slots = [spec for path, spec in expected(folder)["optax"].items() if ".opt_state" in path]
    assert sorted(spec for path, spec in back.items() if ".opt_state" in path) == sorted(slots)


def test_a_native_module_takes_the_weights_of_the_model(folder):
    module = kfb.restore(folder / "model", migrate.to_nnx(older.build()))
    assert older.specs(module) == expected(folder)["module"]


def test_training_goes_on(folder):
    state = kfb.restore(folder / "model", kfb.TrainState.abstract(older.build))
    state, logs = kfb.make_train_step(older.build())(state, (older.X, older.Y))
    assert int(state.step) == older.STEPS + 1
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves((state.params, logs)))
    assert keras.backend.backend() == "jax"
