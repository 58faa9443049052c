"""What a manager tells of its steps, and how one is removed."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

import keras_flax_bridge as kfb


def at(step):
    return {
        "step": jnp.int32(step),
        "params": {"w": jnp.full(4, step), "b": jnp.ones(2)},
        "rest": {"x": jnp.ones(3)},
    }


NOTE = {"run": "a", "tags": ["x", None], "lr": 0.5, "nested": {"n": 1, "ok": True}}


def test_metrics_and_metadata_of_steps(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=None) as manager:
        manager.save(at(1), logs={"loss": 1.5, "words": "many"}, metadata=NOTE)
        manager.save(at(2))
        manager.wait()
        assert (manager.metrics(1), manager.metadata(1)) == ({"loss": 1.5}, NOTE)
        assert (manager.metrics(2), manager.metadata(2)) == ({}, {})
    with kfb.CheckpointManager(tmp_path) as manager:  # in another process too
        assert (manager.metrics(1), manager.metadata(1)) == ({"loss": 1.5}, NOTE)
        for ask in (manager.metrics, manager.metadata, manager.delete):
            with pytest.raises(
                kfb.CheckpointNotFoundError, match=r"step=3, expected one of the steps \[1, 2\]"
            ):
                ask(3)


WRONG = {
    "no dict": [1],
    "a tuple": {"a": (1, 2)},
    "a number as name": {1: "a"},
    "an array": {"a": np.ones(2)},
    "not a number": {"a": float("nan")},
}


@pytest.mark.parametrize("case", WRONG)
def test_metadata_that_json_does_not_preserve(case, tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        with pytest.raises(kfb.ArgumentError, match=r"metadata: got a (dict of what JSON|list)"):
            manager.save(at(1), metadata=WRONG[case])
        assert manager.all_steps() == []


def test_a_deleted_step_is_gone_and_can_be_saved_again(tmp_path):
    with kfb.CheckpointManager(tmp_path, keep_best="loss", max_to_keep=None) as manager:
        for step in (1, 2, 3):
            manager.save(at(step), logs={"loss": float(step)})
        manager.delete(1)
        manager.delete(3)  # waits for its save
        assert (manager.all_steps(), manager.best_step, manager.latest_step) == ([2], 2, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["2"]
        assert manager.save(at(3), logs={"loss": 0.5})
        manager.wait()
        assert (manager.all_steps(), manager.best_step) == ([2, 3], 3)


def test_a_step_that_is_read_is_deleted_afterwards(tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        manager.save(at(1))
        manager.wait()
        with manager._root.reading():
            thread = threading.Thread(target=manager.delete, args=(1,))
            thread.start()
            thread.join(0.1)
            assert (thread.is_alive(), manager.all_steps()) == (True, [1])
        thread.join(60)
        assert manager.all_steps() == []


def test_whether_a_save_runs(tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        assert not manager.is_saving
        with manager._root.turn():
            manager._root._folder.pending = pending = Unfinished()
        assert manager.is_saving
        pending.done.set()
        assert not manager.is_saving
        manager._root._folder.pending = None


class Unfinished:
    """A save that runs until it is told to end."""

    def __init__(self):
        self.done = threading.Event()


def test_the_best_by_several_rules_stay(tmp_path):
    rules = ["val_loss", ("score", "max")]
    with kfb.CheckpointManager(tmp_path, keep_best=rules, max_to_keep=1) as manager:
        for step, (loss, score) in enumerate([(1.0, 0.1), (2.0, 0.9), (3.0, 0.2), (4.0, 0.3)], 1):
            manager.save(at(step), logs={"val_loss": loss, "score": score})
        manager.wait()
        assert manager.all_steps() == [1, 2, 4]
        assert (manager.best_step, manager.best_steps) == (1, {"val_loss": 1, "score": 2})
        assert manager.metrics(2) == {"val_loss": 2.0, "score": 0.9}


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        (["loss", "speed"], r"'speed', expected \('speed', 'min'\)"),
        ([("loss", "min"), "loss"], "distinct names"),
        ([("loss", "least")], "mode 'least'"),
        ([], "a name in the logs"),
        (["loss", ("a", "b", "c")], "a name in the logs"),
    ],
)
def test_rules_that_say_nothing(rules, match, tmp_path):
    with pytest.raises(kfb.ArgumentError, match=match):
        kfb.CheckpointManager(tmp_path, keep_best=rules)


def test_each_rule_wants_its_name_in_the_logs(tmp_path):
    with kfb.CheckpointManager(tmp_path, keep_best=["loss", ("score", "max")]) as manager:
        with pytest.raises(kfb.ArgumentError, match="expected 'score'"):
            manager.save(at(1), logs={"loss": 1.0})
        assert manager.save(at(1), logs={"loss": 1.0, "score": 1.0})


# include=, rename=, and the names that come back
PARTS = {
    "everything": (None, None, {"step", "params/w", "params/b", "rest/x"}),
    "a subtree": (["params"], None, {"params/w", "params/b"}),
    "a pattern": ("w$", None, {"params/w"}),
    "renamed": (["model"], [("^params/", "model/")], {"model/w", "model/b"}),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_plain_dict_of_what_is_stored(case, tmp_path):
    include, rename, names = PARTS[case]
    with kfb.CheckpointManager(tmp_path, layout="packed") as manager:
        manager.save(at(5))
        found = manager.restore(dict, include=include, rename=rename)
    flat = {"/".join(path): leaf for path, leaf in kfb_flat(found)}
    assert flat.keys() == names
    weight = next((leaf for name, leaf in flat.items() if name.endswith("/w")))
    assert np.array_equal(weight, np.full(4, 5))
    assert type(found) is dict


def kfb_flat(tree, path=()):
    for name, node in tree.items():
        yield from kfb_flat(node, (*path, name)) if isinstance(node, dict) else [((*path, name), node)]


def test_a_selection_of_nothing(tmp_path):
    kfb.save(tmp_path / "one", at(1))
    for include in ("nothing", ["nothing"]):
        with pytest.raises(kfb.StructureMismatchError, match="first names are params, rest, step"):
            kfb.restore(tmp_path / "one", dict, include=include)
    like = {"params": {"w": np.zeros(4, "int32"), "b": np.zeros(2, "float32")}}
    part = kfb.restore(tmp_path / "one", like, include=["params"])
    assert np.array_equal(part["params"]["w"], np.full(4, 1))
