"""Processes that die and disks that fail: what was finished stays, and restores."""

import os
import resource
import subprocess
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import keras_flax_bridge as kfb
from tests.support.subprocesses import spawn

SIZE = 50_000


@struct.dataclass
class Numbered:
    """A state all of whose values tell its step."""

    step: int
    values: dict


def numbered(step):
    return Numbered(jnp.int32(step), {f"{i}": jnp.full(SIZE, step + i, "float32") for i in range(4)})


def save_for_ever(folder, layout):
    """Saves steps until it is killed; says which it began and which are on disk."""
    with kfb.CheckpointManager(folder, max_to_keep=3, layout=layout) as manager:
        begin = manager.latest_step or 0
        for step in range(begin + 1, begin + 10_000):
            manager.save(numbered(step))
            print("begun", step, flush=True)
            if step % 2 == 0:  # every other save is overtaken by the next
                manager.wait()
                print("done", step, flush=True)


KILLS = [
    pytest.param(2, "tree", marks=pytest.mark.slow, id="few tree"),
    pytest.param(2, "packed", marks=pytest.mark.slow, id="few packed"),
    pytest.param(25, "tree", marks=pytest.mark.full, id="many tree"),
    pytest.param(25, "packed", marks=pytest.mark.full, id="many packed"),
]


@pytest.mark.parametrize(("kills", "layout"), KILLS)
def test_killed_while_saving_no_finished_step_is_lost(tmp_path, kills, layout):
    rng, done = np.random.default_rng(kills), 0
    for _ in range(kills):
        with spawn(save_for_ever, str(tmp_path), layout) as process:
            first = process.stdout.readline()  # imports are over: saving has begun
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            lines = [first, *process.stdout.read().splitlines()]
        done = max([done, *(int(line.split()[1]) for line in lines if line.startswith("done"))])
        with kfb.CheckpointManager(tmp_path) as manager:
            steps = manager.all_steps()
        assert done == 0 or steps[-1] >= done
        for step in steps:
            restored = kfb.restore(tmp_path, numbered(0), step=step)
            assert int(restored.step) == step
            assert all(np.all(leaf == step + int(name)) for name, leaf in restored.values.items())


def save_on_a_full_disk(folder):
    """Files can't grow over a limit, which to a program is a full disk."""
    with kfb.CheckpointManager(folder) as manager:
        manager.save(numbered(1))
        manager.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
        try:
            manager.save(numbered(2))
            manager.wait()
        except kfb.CheckpointError as error:
            print("said:", str(error).replace("\n", " "), flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
        os._exit(0)


@pytest.mark.slow
def test_a_full_disk_is_said_and_older_steps_are_whole(tmp_path):
    with spawn(save_on_a_full_disk, str(tmp_path)) as process:
        output = process.communicate(timeout=120)[0]
    assert "said:" in output
    assert "Older steps are intact" in output
    assert int(kfb.restore(tmp_path, numbered(0)).step) == 1
    assert kfb.verify(tmp_path).ok


def save_where_none_may_write(folder):
    """Saves into a folder that becomes read-only, as a user to whom that means something."""
    os.environ["HOME"] = folder
    with kfb.CheckpointManager(folder) as manager:
        manager.save(numbered(1))
        manager.wait()
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        try:
            manager.save(numbered(2))
            manager.wait()
        except kfb.CheckpointError as error:
            print("said:", str(error).replace("\n", " "), flush=True)
        os._exit(0)


@pytest.mark.slow
def test_a_read_only_folder_is_said_and_older_steps_are_whole():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with spawn(save_where_none_may_write, folder) as process:
            output = process.communicate(timeout=120)[0]
        assert "said:" in output
        assert "Permission denied" in output
        assert int(kfb.restore(folder, numbered(0)).step) == 1
        os.chmod(folder, 0o755)


def test_a_second_writer_takes_no_step_of_the_first(tmp_path):
    with kfb.CheckpointManager(tmp_path) as first, kfb.CheckpointManager(tmp_path) as second:
        first.save(numbered(1))
        with pytest.raises(kfb.CheckpointError, match="expected a step after 1"):
            second.save(numbered(1))
        second.save(numbered(2))
        with pytest.raises(kfb.CheckpointError, match="expected a step after 2"):
            first.save(numbered(2))
        first.save(numbered(3))
    for step in (1, 2, 3):
        assert int(kfb.restore(tmp_path, numbered(0), step=step).step) == step


def race(folder):
    """One of two processes that save the same steps at the same time."""
    with kfb.CheckpointManager(folder, max_to_keep=None) as manager:
        print("ready", flush=True)
        sys.stdin.readline()
        for step in range(1, 8):
            try:
                manager.save(numbered(step))
                manager.wait()
            except kfb.CheckpointError:
                print("refused", flush=True)


@pytest.mark.slow
def test_two_processes_in_one_folder_leave_whole_steps_or_say_so(tmp_path):
    both = [spawn(race, str(tmp_path), stdin=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.stdout.readline()
    outputs = [process.communicate("go\n", timeout=120)[0] for process in both]
    steps = kfb.CheckpointManager(tmp_path).all_steps()
    assert steps == list(range(1, 8))
    assert (
        sum(output.count("refused") for output in outputs) == 7
    )  # each step is one's, and the other is told
    for step in steps:
        assert int(kfb.restore(tmp_path, numbered(0), step=step).step) == step
