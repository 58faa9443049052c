"""Several processes on JAX's own engine: one checkpoint of all, read by as many, fewer or more."""

import time

import jax
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support import processes
from tests.support.cases import TREES
from tests.support.subprocesses import together
from tests.support.thinning import LATER

pytestmark = pytest.mark.slow
# Sums over a batch are taken in another order when its rows lie elsewhere: float32's last bits.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What six steps in one process, on one device, come to."""
    model, data = processes.build(), processes.rows()
    state, step = kfb.TrainState.from_keras(model, batch=next(processes.rows())), kfb.make_train_step(model)
    for _ in range(6):
        state, _ = step(state, next(data))
    return state


def read(folder):
    return kfb.restore(folder, kfb.TrainState.from_keras(processes.build(), batch=next(processes.rows())))


def close(state, wanted):
    assert int(state.step) == int(wanted.step)
    for tree in TREES:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE),
            getattr(state, tree),
            getattr(wanted, tree),
        )


@pytest.mark.parametrize(
    ("first", "second", "layout"),
    [
        (2, 1, "tree"),
        *(pytest.param(*row, marks=LATER) for row in [(2, 2, "tree"), (1, 2, "tree"), (2, 2, "packed")]),
    ],
)
def test_a_run_goes_on_in_as_many_processes_or_others(tmp_path, alone, first, second, layout):
    processes.run(first, "train", str(tmp_path), 3, layout)
    processes.run(second, "train", str(tmp_path), 6, layout)
    close(read(tmp_path), alone)
    report = kfb.verify(tmp_path)
    assert report.damaged == {}
    assert report.ok == (second == 1)  # a leaf that is split over processes has no checksum


def test_a_process_that_dies_while_saving_leaves_whole_steps_and_stops_the_others(tmp_path):
    both = together(2, processes.save_for_ever, str(tmp_path))
    for process in both:
        while not process.stdout.readline().startswith("saved 2"):
            pass
    time.sleep(0.05)
    both[1].kill()
    begin = time.monotonic()
    output = both[0].communicate(timeout=120)[0]
    assert time.monotonic() - begin < 90
    assert both[0].returncode != 0
    assert "CheckpointError" in output or "JAX distributed service detected fatal errors" in output
    saved = [int(line.split()[1]) for line in output.splitlines() if line.startswith("saved")]
    steps = kfb.CheckpointManager(tmp_path).all_steps()
    assert steps[-1] >= max([2, *saved])
    for step in steps:
        assert int(kfb.restore(tmp_path / str(step), read(tmp_path)).step) == step
