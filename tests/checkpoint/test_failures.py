"""Saves that fail, and interpreters that end: no step is lost in silence."""

import gc
import logging
import os
import signal
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.checkpoint.test_crashes import Numbered, numbered
from tests.support.saving import full_disk, in_threads, large, small, told, whole
from tests.support.subprocesses import spawn
from tests.support.thinning import LATER


@pytest.fixture(autouse=True)
def quiet():
    """Orbax logs the traceback of each failure, to a file that may be full."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.CRITICAL)
    yield
    absl.setLevel(before)


def fail(manager, step):
    """A save that fails in the background, of which nobody was told."""
    manager._root._folder.join()  # what was begun before has room
    with full_disk():
        assert manager.save(large(step))
        manager._root._folder.join()


@pytest.fixture
def manager(tmp_path):
    """A manager whose step 1 is on disk."""
    manager = kfb.CheckpointManager(tmp_path / "run", max_to_keep=None)
    manager.save(large(1))
    manager.wait()
    yield manager
    manager.close()


NEXT = {
    "save": lambda m: m.save(large(9)),
    "a save that is not due": lambda m: m.save(large(1)),
    "wait": lambda m: m.wait(),
    "close": lambda m: m.close(),
    "restore": lambda m: m.restore(large(0)) and None,
    "the end of a with block": lambda m: m.__exit__(None, None, None),
}


@pytest.mark.parametrize("act", NEXT.values(), ids=NEXT)
def test_the_next_call_raises_a_failure_and_no_other(manager, act):
    fail(manager, 2)
    assert told(lambda: act(manager)) == ("failed", 2)
    for other in NEXT.values():
        assert told(lambda other=other: other(manager)) in (None, True, False)
    assert whole(manager.directory) == [1, 9]


def test_save_starts_its_own_save_before_it_raises(manager):
    fail(manager, 2)
    with pytest.raises(kfb.CheckpointError, match=r"step 2 .*The save of step 3 was started\."):
        manager.save(large(3))
    manager.wait()
    assert manager.all_steps() == [1, 3]
    assert manager.saved == {1, 3}
    assert manager.save(large(3)) is False
    with pytest.raises(kfb.CheckpointError, match="a step after 3"):
        manager.save(large(2))


def test_a_failed_step_can_be_saved_again(manager):
    fail(manager, 2)
    assert told(manager.wait) == ("failed", 2)
    assert manager.save(large(2))
    manager.wait()
    assert whole(manager.directory) == [1, 2]


@pytest.mark.slow
def test_every_failure_is_raised_once_by_as_many_calls(manager):
    results = []
    for step in range(2, 12):
        if step % 3:
            results.append(told(lambda step=step: manager.save(large(step))))
            manager._root._folder.join()
        else:
            with full_disk():
                results.append(told(lambda step=step: manager.save(large(step))))
                manager._root._folder.join()
    results.append(told(manager.wait))
    assert [r for r in results if isinstance(r, tuple)] == [("failed", s) for s in (3, 6, 9)]
    assert whole(manager.directory) == [1, 2, 4, 5, 7, 8, 10, 11]


def test_a_failure_leaves_nothing_behind_and_says_what_was_needed(manager):
    fail(manager, 2)
    with pytest.raises(
        kfb.CheckpointError, match=r"needs 400,004 bytes, and [\d,]+ bytes are free.*"
    ) as caught:
        manager.wait()
    assert caught.value.where == str(manager.directory / "2")
    assert [f.name for f in manager.directory.iterdir()] == ["1"]


def test_a_single_save_that_fails_leaves_nothing_behind(tmp_path):
    with full_disk(), pytest.raises(kfb.CheckpointError, match="needs 400,004 bytes"):
        kfb.save(tmp_path / "x", large(1))
    assert not list(tmp_path.iterdir())
    kfb.save(tmp_path / "x", large(1))
    assert kfb.verify(tmp_path / "x").ok


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_retention_never_removes_the_last_whole_step(tmp_path, keep):
    with kfb.CheckpointManager(tmp_path, max_to_keep=keep) as manager:
        for step in range(1, 4):
            manager.save(large(step))
        for step in range(4, 8):
            fail(manager, step)
            assert told(manager.wait) == ("failed", step)
            assert whole(tmp_path) == list(range(4 - keep, 4))
        manager.save(large(8))
        manager.wait()
        assert whole(tmp_path) == [*range(5 - keep, 4), 8]


def test_steps_that_others_removed_do_not_count_as_kept(tmp_path):
    with kfb.CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(small(9))
        manager.wait()
        (tmp_path / "9").rename(tmp_path / "elsewhere")
        manager.save(small(10))
        manager.wait()
        (tmp_path / "10").rename(tmp_path / "elsewhere, too")
        manager.restore(small(0), step=None) if manager.all_steps() else None
    with kfb.CheckpointManager(tmp_path, max_to_keep=1) as manager:
        manager.save(small(3))
    assert whole(tmp_path) == [3]


def test_an_exception_in_the_block_is_not_masked(tmp_path, caplog):
    manager = kfb.CheckpointManager(tmp_path)

    def train():
        with manager:
            fail(manager, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    assert "saving step 1" in "".join(caught.value.__notes__)
    assert "saving step 1" in caplog.text
    manager.close()  # it was told


def test_what_is_wrong_with_a_state_is_raised_and_the_failure_waits(manager):
    fail(manager, 2)
    with pytest.raises(kfb.StructureMismatchError, match="values/bad"):
        manager.save(Numbered(jnp.int32(3), {"bad": "text"}))
    assert told(manager.wait) == ("failed", 2)


def test_a_save_that_could_not_be_started_is_still_due(tmp_path):
    with kfb.CheckpointManager(tmp_path, save_every=4) as manager:
        assert not manager.save(small(3))
        with pytest.raises(kfb.BridgeError, match="bad"):
            manager.save(Numbered(jnp.int32(6), {"bad": "text"}))
        assert manager.save(small(6))


def test_a_closed_manager_closes_again_and_goes_on(manager):
    manager.save(large(2))
    manager.close()
    manager.close()
    assert manager.all_steps() == [1, 2]
    assert int(manager.restore(large(0)).step) == 2
    assert manager.save(large(3))
    manager.close()
    assert whole(manager.directory) == [1, 2, 3]


def test_an_interrupted_save_leaves_the_manager_usable(manager, monkeypatch):
    kind = type(manager._root._checkpointer)
    real = kind.save_checkpointables_async

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)  # it runs, and nobody has its answer
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "save_checkpointables_async", interrupted)
        with pytest.raises(KeyboardInterrupt):
            manager.save(large(2))
    assert 2 not in manager.saved
    manager.save(large(2))
    manager.save(large(3))
    manager.wait()
    assert whole(manager.directory) == [1, 2, 3]


class Held:
    """The answer to a save that takes until somebody lets it go."""

    def __init__(self, answer):
        self.answer = answer
        self.let_go = threading.Event()

    def result(self):
        self.let_go.wait(60)
        return self.answer.result()


def test_an_interrupted_wait_leaves_the_manager_usable(manager, monkeypatch):
    kind, held = type(manager._root._checkpointer), []
    real = kind.save_checkpointables_async

    def hold(*args, **kwargs):
        held.append(Held(real(*args, **kwargs)))
        return held[0]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "save_checkpointables_async", hold)
        manager.save(large(2))
    for act in (manager.wait, lambda: manager.save(large(3)), manager.close):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            act()
    held[0].let_go.set()
    manager.save(large(3))
    manager.wait()
    assert whole(manager.directory) == [1, 2, 3]


def test_one_of_the_threads_that_wait_is_told_of_a_failure(manager):
    with full_disk():
        manager.save(large(2))
        results = in_threads(6, lambda _: told(manager.wait))
    assert sorted(map(str, results)) == ["('failed', 2)"] + ["None"] * 5


# --- the end of the interpreter


def two(manager):
    manager.save(numbered(1))
    manager.save(numbered(2))


def fall_off(manager):
    two(manager)


def exit_by_sys(manager):
    two(manager)
    sys.exit(0)


def raise_an_exception(manager):
    two(manager)
    sys.stderr.close()
    raise ZeroDivisionError


def be_collected(manager):
    two(manager)
    del manager
    gc.collect()


ENDS = [fall_off, exit_by_sys, raise_an_exception, be_collected]


def end(folder, how):
    """Saves, and ends in a way that closes no manager; another one's failure was told to nobody."""
    logging.basicConfig(stream=sys.stdout)
    untold = kfb.CheckpointManager(f"{folder}/untold")
    fail(untold, 1)
    globals()[how](kfb.CheckpointManager(f"{folder}/run"))


@pytest.mark.parametrize(
    "how",
    [pytest.param(ENDS[0], marks=pytest.mark.slow), *(pytest.param(end, marks=LATER) for end in ENDS[1:])],
)
def test_an_interpreter_that_ends_finishes_its_save_and_logs_what_nobody_was_told(tmp_path, how):
    with spawn(end, str(tmp_path), how.__name__) as process:
        output = process.communicate(timeout=120)[0]
    assert int(kfb.restore(tmp_path / "run", numbered(0)).step) == 2
    assert kfb.verify(tmp_path / "run").ok
    assert output.count("ERROR:keras_flax_bridge:") == 1
    assert "saving step 1" in output


def test_a_manager_that_is_collected_logs_what_nobody_was_told(tmp_path, caplog):
    manager = kfb.CheckpointManager(tmp_path)
    fail(manager, 1)
    del manager
    gc.collect()
    deadline = time.time() + 10
    while "saving step 1" not in caplog.text and time.time() < deadline:
        time.sleep(0.05)
        gc.collect()
    assert caplog.text.count("saving step 1") >= 1


# --- a disk that fails in between


FAILING = [
    pytest.param(20, id="few"),
    pytest.param(100, id="many", marks=pytest.mark.slow),
    pytest.param(500, id="full", marks=pytest.mark.full),
]


@pytest.mark.slow
@pytest.mark.parametrize("saves", FAILING)
def test_on_a_disk_that_fails_in_between_exactly_the_failed_steps_are_missing(tmp_path, saves):
    rng, reported, broken = np.random.default_rng(saves), [], set()
    with kfb.CheckpointManager(tmp_path, max_to_keep=None) as manager:
        for step in range(saves):
            if rng.random() < 0.3:
                with full_disk():
                    reported.append(told(lambda s=step: manager.save(large(s))))
                    if rng.random() < 0.5:
                        reported.append(told(manager.wait))
                    manager._root._folder.join()
                broken.add(step)
            else:
                reported.append(told(lambda s=step: manager.save(large(s))))
                manager._root._folder.join()
        reported.append(told(manager.wait))
    assert sorted(r[1] for r in reported if isinstance(r, tuple)) == sorted(broken)
    assert whole(tmp_path) == sorted(set(range(saves)) - broken)
    assert all(folder.name.isdigit() for folder in tmp_path.iterdir())
