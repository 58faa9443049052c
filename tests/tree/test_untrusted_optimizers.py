"""No config of an optimizer runs anything, through whichever door its file comes."""

import contextlib
import re
from pathlib import Path

import keras
import optax
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from tests.support import hostile


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


@pytest.mark.slow
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
