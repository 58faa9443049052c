"""Keras optimizers as native optax: the contract table, and what is refused."""

from functools import cached_property

import jax
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import _paths
from tests.optimizer_rows import CHUNK, ROWS, STEPS, TOLERANCE, noise


def relative(a, b):
    """The largest difference of two trees, relative to the largest value of the second."""
    a, b = (
        np.concatenate([np.ravel(x).astype("float64") for x in _paths.flatten(t).values()]) for t in (a, b)
    )
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def different(a, b):
    """Paths of the leaves that are not the same bits."""
    a, b = _paths.flatten(a), _paths.flatten(b)
    assert a.keys() == b.keys()
    return [_paths.join(path) for path in a if not np.array_equal(a[path], b[path], equal_nan=True)]


class Runs:
    """The runs of a row, each made once: on one side, and switched at step 20."""

    def __init__(self, row):
        self.row = row
        self.model, self.optimizer = row.build()
        self.start = kfb.TrainState.from_keras(self.model, optimizer=self.optimizer)
        self.noise = noise(self.start.params, row.overflow)

        @jax.jit
        def steps(state, noise):
            def step(state, noise):
                grads = jax.tree.map(lambda p, n: 0.5 * (p - 0.3) + n, state.params, noise)
                return state.apply_gradients(grads=grads), None

            return jax.lax.scan(step, state, noise)[0]

        self._steps = steps

    def run(self, state, begin, end):
        """Steps from one to another; the learning rate is halved at step 30."""
        for i in range(begin, end, CHUNK):
            if i == 30:
                state = halved(state)
            state = self._steps(state, jax.tree.map(lambda n, i=i: n[i : i + CHUNK], self.noise))
        return state

    def to_optax(self, state):
        return state.to_optax(self.model)

    def to_keras(self, state):
        return state.to_keras()

    @cached_property
    def keras_20(self):
        return self.run(self.start, 0, 20)

    @cached_property
    def keras_50(self):
        return self.run(self.keras_20, 20, STEPS)

    @cached_property
    def optax_20(self):
        return self.run(self.to_optax(self.start), 0, 20)

    @cached_property
    def optax_50(self):
        return self.run(self.optax_20, 20, STEPS)


def halved(state):
    """The state with half the learning rate, where a state holds it."""
    flat = _paths.flatten(state.opt_state)
    rates = {path: 0.5 * leaf for path, leaf in flat.items() if path[-1] == "learning_rate"}
    return state.replace(opt_state=_paths.fill(state.opt_state, rates))


@pytest.fixture(
    params=[pytest.param(row, id=row.name, marks=[] if row.fast else [pytest.mark.slow]) for row in ROWS],
    scope="module",
)
def runs(request):
    yield Runs(request.param)
    jax.clear_caches()


def test_a_free_run_is_that_of_keras(runs):
    assert relative(runs.optax_50.params, runs.keras_50.params) <= TOLERANCE
    assert relative(runs.start.params, runs.keras_50.params) > 1e-2, "nothing moved"


def test_slots_of_a_free_run_are_those_of_keras(runs):
    slots, expected = (_paths.flatten(s.opt_state) for s in (runs.to_keras(runs.optax_50), runs.keras_50))
    assert slots.keys() == expected.keys()
    off = {path: relative(slots[path], leaf) for path, leaf in expected.items() if np.any(leaf)}
    assert {p: value for p, value in off.items() if value > 10 * TOLERANCE} == {}


def test_switching_at_step_20_changes_nothing(runs):
    to_optax = runs.run(runs.to_optax(runs.keras_20), 20, STEPS)
    assert relative(to_optax.params, runs.keras_50.params) <= TOLERANCE
    to_keras = runs.run(runs.to_keras(runs.optax_20), 20, STEPS)
    assert relative(to_keras.params, runs.keras_50.params) <= TOLERANCE


def test_the_state_goes_there_and_back_bit_for_bit(runs):
    back = runs.to_keras(runs.to_optax(runs.keras_20))
    # Adafactor: what r and c stand for, which is never read
    assert [
        p
        for p in different(back.opt_state, runs.keras_20.opt_state)
        if not p.startswith(("v/", "inner_optimizer/v/"))
    ] == []
    assert different(back.params, runs.keras_20.params) == []
    assert different(runs.to_optax(runs.to_keras(runs.optax_20)).opt_state, runs.optax_20.opt_state) == []
