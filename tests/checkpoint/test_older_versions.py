"""What each version wrote is read exactly; `tests/support/older_versions.py` wrote it there."""

import json
import shutil

import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.checkpoint.readers import opened
from keras_flax_bridge.cli.main import main
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support import older_versions as older
from tests.support.capabilities import needs
from tests.support.data_sets import SETS

MODELS = ("model", "packed", "several", "optax")
FILES = (*older.LIKES, "model.keras", "model.safetensors", "run")
READ = {*FILES, "map.json"}  # the kinds that are read below


def each(names):
    """Every data set that has an artifact of the kind, with each name of a kind."""
    cases = {
        f"{data.name}-{name}": (data, name) for name in names for data in SETS.values() if name in data.kinds
    }
    return pytest.mark.parametrize(("data", "name"), cases.values(), ids=cases)


@pytest.fixture(params=SETS)
def data(request):
    return SETS[request.param]


@each(older.LIKES)
def test_every_leaf_is_restored_exactly(data, name):
    assert older.specs(kfb.restore(data / name, older.LIKES[name]())) == data.expected[name]


@each(["model", "packed"])
def test_a_checkpoint_is_restored_into_a_model_and_an_abstract_state(data, name):
    model = kfb.restore(data / name, older.build())
    weights = older.specs(kfb.TrainState.from_keras(model))
    # those of evaluation too: they are zero
    totals = {path for path in data.expected[name] if "metrics" in path}
    assert {path for path in weights if weights[path] != data.expected[name][path]} <= totals
    abstract = kfb.TrainState.abstract(older.build)
    assert older.specs(kfb.restore(data / name, abstract)) == data.expected[name]


def test_a_checkpoint_is_restored_into_a_native_module(data):
    module = kfb.restore(data / "model", migrate.to_nnx(older.build()))
    assert older.specs(module) == data.expected["module"]


def test_the_optimizer_of_the_other_library_is_converted(data):
    state = kfb.restore(data / "optax", kfb.TrainState.from_keras(older.build()))
    back = older.specs(state.to_optax())
    slots = {path: spec for path, spec in data.expected["optax"].items() if ".opt_state" in path}
    assert sorted(spec for path, spec in back.items() if ".opt_state" in path) == sorted(slots.values())


@needs(*older.CONFIGS)
@each(MODELS)
def test_models_are_rebuilt(data, name):
    models = kfb.load_model(data / name)
    parts = models if isinstance(models, dict) else {"": models}
    like = kfb.restore(data / name, older.LIKES[name]())
    for part, model in parts.items():
        state = like.part(part) if part else like
        for tree in ("params", "non_trainable"):
            found = kfb.TrainState.from_keras(model, optimizer=None if model.compiled else "sgd")
            assert older.specs(getattr(found, tree)) == older.specs(getattr(state, tree))


@needs(*older.CONFIGS)
def test_a_keras_file_is_restored_and_loaded(data):
    weights = ("params", "non_trainable", "opt_state")
    for model in (
        kfb.restore(data / "model.keras", older.build(), include=weights),
        kfb.load_model(data / "model.keras"),
    ):
        found = older.specs(kfb.TrainState.from_keras(model))
        seed = "seed_generator_state"  # which Keras's files lack
        kept = [path for path in found if any(tree in path for tree in weights) and seed not in path]
        assert {path: found[path] for path in kept} == {path: data.expected["model"][path] for path in kept}
        assert len(kept) > 15


@each(FILES)
def test_inspect_and_verify_read_it(data, name, capsys):
    assert main(["inspect", str(data / name)]) == 0
    assert main(["verify", str(data / name)]) == (1 if name.endswith(".safetensors") else 0)
    assert "Traceback" not in capsys.readouterr().out


def test_the_reader_of_the_command_line_gives_every_value(data):
    for name in ("model", "packed", "model.safetensors"):
        state = flatten_tree(kfb.restore(data / "model", older.LIKES["model"]()))
        found = opened(data / name)
        assert {p: older.spec(leaf) for p, leaf in found.values().items()} == {
            p: older.spec(leaf) for p, leaf in state.items()
        }
        assert found.metadata.model["class_name"] == "Sequential"


def test_a_manager_goes_on_in_the_folder(data, tmp_path):
    shutil.copytree(data / "run", tmp_path / "run")
    with kfb.CheckpointManager(tmp_path / "run", keep_best=("loss", "min")) as manager:
        assert (manager.all_steps(), manager.best_step) == ([1, 2], 2)
        counter, batches = older.Counter(), older.grains()
        state = manager.restore(older.LIKES["model"](), step=1, data=counter)
        assert older.specs(state) == data.expected["first"]
        assert counter.place == {"epoch": 0, "seen": [0, "a"]}
        state = manager.restore(older.LIKES["model"](), data=batches)
        assert older.specs(state) == data.expected["model"]
        assert next(batches) == 1
        assert manager.save(state.replace(step=np.int32(3))) is True
    assert kfb.verify(tmp_path / "run").ok


def test_a_weight_map_moves_the_weights(data, tmp_path):
    found = migrate.WeightMap.load(data / "map.json")
    state = kfb.restore(data / "model", older.LIKES["model"]())
    moved = flatten_tree(found.to_flax(state))
    module = kfb.restore(data / "module", older.LIKES["module"]())
    assert {p: older.spec(leaf) for p, leaf in moved.items()} == {
        tuple(name.split("/")): older.spec(leaf) for name, leaf in older.values(module).items()
    }
    found.save(tmp_path / "map.json")
    before, after = (json.loads((folder / "map.json").read_text()) for folder in (data, tmp_path))
    before.pop("written_by", None)
    assert after.items() >= before.items()
