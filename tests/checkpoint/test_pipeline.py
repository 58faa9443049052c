"""A restore passes each station once, in one order, whatever it restores into."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import restoring
from keras_flax_bridge.checkpoint.matching import placement
from keras_flax_bridge.checkpoint.options import RestoreOptions
from keras_flax_bridge.checkpoint.readers import restorable
from tests.support import older_versions as older
from tests.support.capabilities import needs
from tests.support.cases import differing

DATA = Path(__file__).parents[1] / "data" / "e447da4"
PACKAGE = str(Path(kfb.__file__).parent)

OPENED = "checkpoint/orbax_io/reading.py:__init__"
STATIONS = [
    "checkpoint/locating.py:candidates",
    "checkpoint/locating.py:from_newest",
    "checkpoint/readers/opening.py:restorable",
    "checkpoint/optimizer_sides.py:align",
    "checkpoint/targets.py:target_of",
    "checkpoint/matching.py:plan",
    "checkpoint/readers/checkpoints.py:load",
    "checkpoint/readers/checkpoints.py:require_whole",
    "checkpoint/targets.py:put",
]


@contextmanager
def journey():
    """The functions of the package that are called, each as its file and name, and the file of the caller."""
    calls = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            caller = frame.f_back.f_code.co_filename if frame.f_back else ""
            file = frame.f_code.co_filename.removeprefix(PACKAGE + "/")
            calls.append((f"{file}:{frame.f_code.co_name}", caller.removeprefix(PACKAGE + "/")))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(before)


ROWS = {
    # what is stored, what it is restored into
    "a state": ("model", older.LIKES["model"]),
    "an abstract state": ("model", lambda: kfb.TrainState.abstract(older.build)),
    "a packed checkpoint": ("packed", older.LIKES["packed"]),
    "a model": ("model", older.build),
    "a native module": ("model", older.LIKES["module"]),
    "a plain tree": ("kinds_tree", older.LIKES["kinds_tree"]),
    "a state of the other library": ("optax", older.LIKES["model"]),
    "a model of the other library": ("optax", older.build),
    "the reverse": ("model", older.LIKES["optax"]),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_station_is_passed_once_and_in_order(row):
    name, make = ROWS[row]
    like = make()
    with journey() as calls:
        kfb.restore(DATA / name, like)
    called = [call for call, _ in calls]
    assert {s: called.count(s) for s in (OPENED, *STATIONS) if called.count(s) != 1} == {}
    assert [call for call in called if call in STATIONS] == STATIONS


def test_a_restore_has_few_stations():
    like = older.LIKES["model"]()
    with journey() as calls:
        kfb.restore(DATA / "model", like)
    of_pipeline = {call for call, caller in calls if caller == "checkpoint/restoring.py"}
    properties = {"checkpoint/options.py:takes_all", "checkpoint/options.py:weight_map"}
    stations = {c for c in of_pipeline - properties if c.startswith("checkpoint/") and "<" not in c}
    assert stations >= set(STATIONS)
    assert len(stations | {OPENED}) <= 15


@needs(*older.CONFIGS)
def test_load_model_opens_once():
    with journey() as calls:
        kfb.load_model(DATA / "model")
    called = Counter(call for call, _ in calls)
    assert (called[OPENED], called["checkpoint/targets.py:target_of"]) == (1, 1)


@needs(*older.CONFIGS)
def test_a_keras_file_is_read_by_the_same_interface():
    source = restorable(DATA / "model.keras", None)
    values = source.values()
    placed = source.load({path: placement(spec, spec) for path, spec in source.specs.items()})
    assert values.keys() == placed.keys()
    assert [path for path in values if not np.array_equal(values[path], placed[path])] == []
    with pytest.raises(kfb.CheckpointError, match="Restore without data="):
        kfb.restore(DATA / "model.keras", older.build(), data=older.Counter())


def test_the_manager_and_restore_share_their_options(monkeypatch, tmp_path):
    given = {"include": ["params"], "rename": [("x", "y")], "partial": True, "verify": False, "cast": True}
    seen = []
    monkeypatch.setattr(restoring, "filled", lambda source, like, options: seen.append(options) or like)
    with kfb.CheckpointManager(tmp_path) as manager:
        manager.save(older.LIKES["model"]())
        manager.wait()
        manager.restore({}, data=3, **given)
        kfb.restore(tmp_path, {}, data=3, **given)
    assert seen == [RestoreOptions(data=3, **given)] * 2


def test_what_comes_back_from_the_other_side_is_what_was_saved():
    state = kfb.restore(DATA / "optax", older.LIKES["model"]())
    assert (
        differing(state.to_optax().opt_state, kfb.restore(DATA / "optax", older.LIKES["optax"]()).opt_state)
        == []
    )
    assert np.array_equal(kfb.restore(DATA / "optax", older.build()).optimizer.iterations, 1)
