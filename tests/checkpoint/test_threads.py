"""Several threads that save, wait and restore, through one manager and through several."""

import threading

import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.checkpoint.test_crashes import numbered
from tests.support.saving import in_threads, small, whole
from tests.support.thinning import LATER

SAVES = [
    pytest.param(4, 5, id="few"),
    pytest.param(8, 50, id="many", marks=LATER),
]


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "saves"), SAVES)
def test_threads_that_save_side_by_side_lose_nothing(tmp_path, threads, saves):
    with kfb.CheckpointManager(tmp_path, max_to_keep=None) as manager:
        answers = in_threads(threads, lambda k: [manager.save(small(k + i * threads)) for i in range(saves)])
    assert answers == [[True] * saves] * threads
    assert whole(tmp_path) == list(range(threads * saves))


@pytest.mark.slow
def test_of_steps_saved_out_of_order_the_newest_stay(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=3) as manager:
        answers = in_threads(4, lambda k: [manager.save(small(k + i * 4)) for i in range(6)])
        assert answers == [[True] * 6] * 4
    assert whole(tmp_path) == [21, 22, 23]


def test_in_one_thread_steps_grow(tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        in_threads(1, lambda _: manager.save(small(5)))
        assert manager.save(small(4))  # another thread's, that came too late
        manager.save(small(6))
        with pytest.raises(kfb.CheckpointError, match="a step after 6"):
            manager.save(small(3))


@pytest.mark.slow
def test_saving_waiting_and_restoring_side_by_side(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(small(0))
        ended = threading.Event()

        def save(_):
            for step in range(1, 25):
                manager.save(small(step))
            ended.set()

        def restore(_):
            while not ended.is_set():
                state = manager.restore(small(0))
                assert np.all(state.values["a"] == state.step)

        def ask(_):
            while not ended.is_set():
                manager.wait()
                assert manager.latest_step in manager.all_steps()
                _ = manager.best_step

        acts = [save, restore, restore, ask]
        try:
            results = in_threads(4, lambda i: acts[i](i))
        finally:
            ended.set()
    assert results == [None] * 4
    assert max(whole(tmp_path)) == 24


def test_wait_returns_for_every_thread_when_the_step_is_on_disk(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=1) as manager:
        for step in range(4):
            manager.save(numbered(step))
            there = in_threads(6, lambda _, s=step: (manager.wait(), (tmp_path / str(s)).is_dir())[1])
            assert there == [True] * 6


@pytest.mark.parametrize("layout", ["tree", pytest.param("packed", marks=pytest.mark.slow)])
def test_managers_of_several_folders_in_several_threads(tmp_path, layout):
    def run(k):
        with kfb.CheckpointManager(tmp_path / str(k), max_to_keep=2, layout=layout) as manager:
            for step in range(6):
                manager.save(small(step))
                kfb.save(tmp_path / f"single {k} {step}", small(step), layout=layout)
            return int(manager.restore(small(0)).step)

    assert in_threads(4, run) == [5] * 4
    assert all(whole(tmp_path / str(k)) == [4, 5] for k in range(4))
    assert all(kfb.verify(folder).ok for folder in tmp_path.glob("single*"))


def test_threads_that_save_at_one_path_leave_one_whole_checkpoint(tmp_path):
    answers = in_threads(4, lambda k: kfb.save(tmp_path / "x", small(k)))
    assert sorted(type(answer).__name__ for answer in answers) == ["CheckpointError"] * 3 + ["NoneType"]
    assert int(kfb.restore(tmp_path / "x", small(0)).step) == answers.index(None)


@pytest.mark.slow
def test_two_managers_of_one_folder_in_two_threads(tmp_path):
    with (
        kfb.CheckpointManager(tmp_path, max_to_keep=3) as first,
        kfb.CheckpointManager(tmp_path, max_to_keep=3) as second,
    ):
        managers = [first, second]
        in_threads(2, lambda k: [told_stale(managers[k], step) for step in range(k, 12, 2)])
    assert len(whole(tmp_path)) == 3  # each knows what the other wrote
    assert whole(tmp_path)[-1] in (10, 11)


def told_stale(manager, step):
    try:
        manager.save(small(step))
    except kfb.CheckpointError as error:
        if "a step after" not in error.expected:
            raise
