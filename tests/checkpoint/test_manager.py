"""The manager of checkpoints: when it saves, what it keeps, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support.cases import equal
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


def states(count):
    model = contracts.SEQUENTIAL.build()
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, donate=False)
    for batch in contracts.SEQUENTIAL.batches(count):
        state, _ = train_step(state, batch)
        yield state


@pytest.mark.slow
def test_saves_when_due_and_keeps_the_newest(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=2, save_every=3) as manager:
        started = [manager.save(state) for state in states(12)]
        manager.wait()
        assert started == [False, False, True] * 4
        assert manager.all_steps() == [9, 12]
        assert manager.latest_step == 12


@pytest.mark.slow
def test_newest_regular_and_best_steps_stay(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 5.0, 4: 4.0, 5: 2.0, 6: 6.0, 7: 7.0}
    with kfb.CheckpointManager(tmp_path, max_to_keep=1, keep_every=3, keep_best="loss") as manager:
        for state in states(7):
            manager.save(state, logs={"loss": losses[int(state.step)]})
    with kfb.CheckpointManager(tmp_path, max_to_keep=1, keep_every=3, keep_best="loss") as manager:
        assert manager.all_steps() == [2, 3, 6, 7]
        assert manager.best_step == 2  # known after a restart too


@pytest.mark.slow
def test_steps_that_jump_over_a_multiple_are_due(tmp_path):
    with kfb.CheckpointManager(tmp_path, save_every=4) as manager:
        jumping = [state for i, state in enumerate(states(12)) if i % 3 == 2]  # steps 3, 6, 9, 12
        assert [manager.save(state) for state in jumping] == [False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "best"), [("val_loss", 2), (("val_loss", "max"), 1), ("val_accuracy", 1)])
def test_the_best_survives_beside_the_newest(tmp_path, keep, best):
    losses = [3.0, 1.0, 2.0, 2.5, float("nan")]
    with kfb.CheckpointManager(tmp_path, max_to_keep=1, keep_best=keep) as manager:
        for state, loss in zip(states(5), losses, strict=True):
            manager.save(state, logs={"val_loss": loss, "val_accuracy": jnp.float32(loss)})
        manager.wait()
        assert manager.best_step == best
        assert manager.all_steps() == [best, 5]
    with kfb.CheckpointManager(tmp_path, max_to_keep=1, keep_best=keep) as reopened:
        assert reopened.best_step == best


def test_a_stale_step_is_refused(tmp_path):
    first, second = states(2)
    with kfb.CheckpointManager(tmp_path) as manager:
        manager.save(second)
        assert manager.save(second) is False  # the same state again, as at the end of a loop
        with pytest.raises(kfb.CheckpointError, match="a step after 2"):
            manager.save(first)
    with kfb.CheckpointManager(tmp_path) as manager:
        with pytest.raises(kfb.CheckpointError, match=r"manager\.restore"):
            manager.save(second)
        restored = manager.restore(second)
        assert manager.save(restored) is False


@pytest.mark.slow
def test_saving_while_training_on_keeps_what_was_saved(tmp_path):
    model = contracts.SEQUENTIAL.build()
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    wanted = {}
    with kfb.CheckpointManager(tmp_path, max_to_keep=None) as manager:
        for batch in contracts.SEQUENTIAL.batches(6):
            state, _ = train_step(state, batch)
            wanted[int(state.step)] = jax.tree.map(np.array, state)
            manager.save(state)  # the next step takes over the very buffers that are being written
    like = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    assert all(equal(kfb.restore(tmp_path, like, step=step), state) for step, state in wanted.items())


class Failing:
    """What Orbax answers to a save that goes wrong in the background."""

    def result(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("ask", ["save", "wait", "exit"])
def test_a_save_that_failed_in_the_background_is_raised(tmp_path, monkeypatch, ask):
    first, second, third = states(3)
    manager = kfb.CheckpointManager(tmp_path)
    manager.save(first)
    manager.wait()
    checkpointer = type(manager._root._checkpointer)
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer, "save_checkpointables_async", lambda *_, **__: Failing())
        manager.save(second)
    acts = {
        "save": lambda: manager.save(third),
        "wait": manager.wait,
        "exit": lambda: manager.__exit__(None, None, None),
    }
    with pytest.raises(kfb.CheckpointError, match=r"No space left.*Older steps are intact"):
        acts[ask]()
    assert equal(kfb.restore(tmp_path, first), first)


def test_a_folder_that_is_gone_is_named(tmp_path):
    with kfb.CheckpointManager(tmp_path / "runs") as manager:
        (tmp_path / "runs").rmdir()
        with pytest.raises(kfb.CheckpointError, match=r"runs.*is gone"):
            manager.save(next(states(1)))


def test_steps_of_a_run_that_was_given_up_are_not_taken_for_new_ones(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=None) as manager:
        first, *rest = states(3)
        for state in (first, *rest):
            manager.save(state)
        manager.restore(first, step=1)
        with pytest.raises(kfb.CheckpointError, match="that you no longer need"):
            manager.save(rest[0])


def test_a_reader_sees_what_another_manager_writes(tmp_path):
    (state,) = states(1)
    with kfb.CheckpointManager(tmp_path) as writer, kfb.CheckpointManager(tmp_path) as reader:
        assert reader.latest_step is None
        writer.save(state)
        writer.wait()
        assert reader.latest_step == 1
        assert equal(reader.restore(state), state)


@pytest.mark.parametrize("wrong", ["donated", "abstract", "no step", "half a step", "nothing"])
def test_what_can_not_be_saved_is_explained(trained, tmp_path, wrong):
    model, state = trained
    given = {
        "donated": state,
        "abstract": kfb.TrainState.abstract(contracts.SEQUENTIAL.build),
        "no step": {"params": jnp.ones(1)},
        "half a step": state.replace(step=7.9),
        "nothing": jnp.ones(3),
    }[wrong]
    if wrong == "donated":
        kfb.make_train_step(model)(state, BATCH)
    with kfb.CheckpointManager(tmp_path) as manager, pytest.raises(kfb.BridgeError):
        manager.save(given)
    if wrong == "nothing":
        with pytest.raises(kfb.ArgumentError, match="expected a TrainState"):
            kfb.save(tmp_path / "one", given)


WRONG = {
    "a file": (kfb.CheckpointError, lambda p: kfb.CheckpointManager(touched(p / "file")), "got a file"),
    "a bucket": (
        kfb.ArgumentError,
        lambda p: kfb.save("gs://bucket/x", {}),
        "a local path",
    ),
    "no path": (kfb.ArgumentError, lambda p: kfb.restore(None, {"a": 1}), "a local path"),
    "no home": (kfb.ArgumentError, lambda p: kfb.restore("~nobody-at-all/x", {}), "without ~"),
    "swapped": (
        kfb.ArgumentError,
        lambda p: kfb.save({"a": 1}, p),
        "path: got a dict, expected a local path",
    ),
    "none kept": (kfb.ArgumentError, lambda p: kfb.CheckpointManager(p, max_to_keep=0), "max_to_keep"),
    "half saves": (kfb.ArgumentError, lambda p: kfb.CheckpointManager(p, save_every=2.5), "save_every"),
    "best of one": (kfb.ArgumentError, lambda p: kfb.CheckpointManager(p, keep_best=("a",)), "keep_best"),
    "no folder": (kfb.CheckpointNotFoundError, lambda p: kfb.restore(p / "none", {"a": 1}), "no checkpoint"),
    "no checkpoint": (kfb.CheckpointNotFoundError, lambda p: kfb.restore(p, {"a": 1}), "no checkpoint"),
    "exists": (kfb.StepAlreadyExistsError, lambda p: kfb.save(p, {"a": jnp.ones(1)}), "exists"),
    "layout": (kfb.ArgumentError, lambda p: kfb.CheckpointManager(p, layout="flat"), "'tree' or 'packed'"),
    "layout of one": (
        kfb.ArgumentError,
        lambda p: kfb.save(p / "x", {"a": 1}, layout="flat"),
        "'tree' or 'packed'",
    ),
    "best": (kfb.ArgumentError, lambda p: kfb.CheckpointManager(p, keep_best="score"), "'min'"),
}


def touched(path):
    path.touch()
    return path


@pytest.mark.parametrize(("kind", "act", "words"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_explained(tmp_path, kind, act, words):
    with pytest.raises(kfb.BridgeError, match=words) as raised:
        act(tmp_path)
    assert type(raised.value) is kind


def test_a_missing_step_names_those_that_exist(tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        for state in states(2):
            manager.save(state)
        manager.wait()
        with pytest.raises(kfb.CheckpointNotFoundError, match=r"\[1, 2\]"):
            manager.restore(state, step=7)
