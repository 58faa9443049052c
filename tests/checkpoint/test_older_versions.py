"""What commit e447da4 wrote is read exactly; `tests/support/older_versions.py` wrote it there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.checkpoint.readers import opened
from keras_flax_bridge.cli.main import main
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support import older_versions as older

DATA = Path(__file__).parents[1] / "data" / "e447da4"
EXPECTED = json.loads((DATA / "expected.json").read_text())
EXPECTED["packed"] = EXPECTED["model"]
MODELS = ("model", "packed", "several", "optax")
FILES = (*older.LIKES, "model.keras", "model.safetensors", "run")


@pytest.mark.parametrize("name", older.LIKES)
def test_every_leaf_is_restored_exactly(name):
    assert older.specs(kfb.restore(DATA / name, older.LIKES[name]())) == EXPECTED[name]


@pytest.mark.parametrize("name", ["model", "packed"])
def test_a_checkpoint_is_restored_into_a_model_and_an_abstract_state(name):
    model = kfb.restore(DATA / name, older.build())
    weights = older.specs(kfb.TrainState.from_keras(model))
    totals = {path for path in EXPECTED[name] if "metrics" in path}  # those of evaluation too: they are zero
    assert {path for path in weights if weights[path] != EXPECTED[name][path]} <= totals
    abstract = kfb.TrainState.abstract(older.build)
    assert older.specs(kfb.restore(DATA / name, abstract)) == EXPECTED[name]


def test_a_checkpoint_is_restored_into_a_native_module():
    module = kfb.restore(DATA / "model", migrate.to_nnx(older.build()))
    assert older.specs(module) == EXPECTED["module"]


def test_the_optimizer_of_the_other_library_is_converted():
    state = kfb.restore(DATA / "optax", kfb.TrainState.from_keras(older.build()))
    back = older.specs(state.to_optax())
    slots = {path: spec for path, spec in EXPECTED["optax"].items() if ".opt_state" in path}
    assert sorted(spec for path, spec in back.items() if ".opt_state" in path) == sorted(slots.values())


@pytest.mark.parametrize("name", MODELS)
def test_models_are_rebuilt(name):
    models = kfb.load_model(DATA / name)
    parts = models if isinstance(models, dict) else {"": models}
    like = kfb.restore(DATA / name, older.LIKES[name]())
    for part, model in parts.items():
        state = like.part(part) if part else like
        for tree in ("params", "non_trainable"):
            found = kfb.TrainState.from_keras(model, optimizer=None if model.compiled else "sgd")
            assert older.specs(getattr(found, tree)) == older.specs(getattr(state, tree))


def test_a_keras_file_is_restored_and_loaded():
    weights = ("params", "non_trainable", "opt_state")
    for model in (
        kfb.restore(DATA / "model.keras", older.build(), include=weights),
        kfb.load_model(DATA / "model.keras"),
    ):
        found = older.specs(kfb.TrainState.from_keras(model))
        seed = "seed_generator_state"  # which Keras's files lack
        kept = [path for path in found if any(tree in path for tree in weights) and seed not in path]
        assert {path: found[path] for path in kept} == {path: EXPECTED["model"][path] for path in kept}
        assert len(kept) > 15


@pytest.mark.parametrize("name", FILES)
def test_inspect_and_verify_read_it(name, capsys):
    assert main(["inspect", str(DATA / name)]) == 0
    assert main(["verify", str(DATA / name)]) == (1 if name.endswith(".safetensors") else 0)
    assert "Traceback" not in capsys.readouterr().out


def test_the_reader_of_the_command_line_gives_every_value():
    for name in ("model", "packed", "model.safetensors"):
        state = flatten_tree(kfb.restore(DATA / "model", older.LIKES["model"]()))
        found = opened(DATA / name)
        assert {p: older.spec(leaf) for p, leaf in found.values().items()} == {
            p: older.spec(leaf) for p, leaf in state.items()
        }
        assert found.metadata.model["class_name"] == "Sequential"


def test_a_manager_goes_on_in_the_folder(tmp_path):
    shutil.copytree(DATA / "run", tmp_path / "run")
    with kfb.CheckpointManager(tmp_path / "run", keep_best=("loss", "min")) as manager:
        assert (manager.all_steps(), manager.best_step) == ([1, 2], 2)
        counter, data = older.Counter(), older.grains()
        state = manager.restore(older.LIKES["model"](), step=1, data=counter)
        assert older.specs(state) == EXPECTED["first"]
        assert counter.place == {"epoch": 0, "seen": [0, "a"]}
        state = manager.restore(older.LIKES["model"](), data=data)
        assert older.specs(state) == EXPECTED["model"]
        assert next(data) == 1
        assert manager.save(state.replace(step=np.int32(3))) is True
    assert kfb.verify(tmp_path / "run").ok


def test_a_weight_map_moves_the_weights(tmp_path):
    found = migrate.WeightMap.load(DATA / "map.json")
    state = kfb.restore(DATA / "model", older.LIKES["model"]())
    moved = flatten_tree(found.to_flax(state))
    module = kfb.restore(DATA / "module", older.LIKES["module"]())
    assert {p: older.spec(leaf) for p, leaf in moved.items()} == {
        tuple(name.split("/")): older.spec(leaf) for name, leaf in older.values(module).items()
    }
    found.save(tmp_path / "map.json")
    before, after = (json.loads((folder / "map.json").read_text()) for folder in (DATA, tmp_path))
    assert after.items() >= before.items()
