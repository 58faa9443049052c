"""Keras optimizers as native optax: every row of the contract table, against Keras itself."""

from functools import cached_property

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import fill_tree, flatten_tree, join_path
from tests.support.cases import double
from tests.tables.optimizers import CHUNK, DOUBLE, ROWS, STEPS, TOLERANCE, Small, noise


def relative(a, b):
    """The largest difference of two trees, relative to the largest value of the second."""
    a, b = (np.concatenate([np.ravel(x).astype("float64") for x in flatten_tree(t).values()]) for t in (a, b))
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def different(a, b):
    """Paths of the leaves that are not the same bits."""
    a, b = flatten_tree(a), flatten_tree(b)
    assert a.keys() == b.keys()
    return [join_path(path) for path in a if not np.array_equal(a[path], b[path], equal_nan=True)]


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
    flat = flatten_tree(state.opt_state)
    rates = {path: 0.5 * leaf for path, leaf in flat.items() if path[-1] == "learning_rate"}
    return state.replace(opt_state=fill_tree(state.opt_state, rates))


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
    slots, expected = (flatten_tree(s.opt_state) for s in (runs.to_keras(runs.optax_50), runs.keras_50))
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


class Fits:
    """A row through `fit`: two epochs of Keras, two of optax, two of Keras, against `fit` alone."""

    def __init__(self, row):
        random = np.random.default_rng(1)
        self.x = random.normal(size=(32, 5, 5, 2)).astype("float32")
        self.y = random.normal(size=(32, 3)).astype("float32")
        self.row = row

    def compiled(self):
        keras.utils.set_random_seed(3)
        model = Small(self.row.constrained)
        model.build((None, 5, 5, 2))
        model.compile(self.row.make(), "mse")
        return model

    def fit(self, model, epochs):
        model.fit(self.x, self.y, batch_size=8, shuffle=False, epochs=epochs, verbose=0)

    def in_optax(self, model, epochs):
        """A loop that Keras has no part in, but for the model's call."""
        state = kfb.TrainState.from_keras(model).to_optax(model)
        tx, apply = state.tx, state.apply_fn

        @jax.jit
        def step(params, opt_state, x, y):
            def loss(params):
                return jnp.mean((apply({"params": params}, x, training=True) - y) ** 2)

            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        params, opt_state = state.params, state.opt_state
        for i in [*range(0, 32, 8)] * epochs:
            params, opt_state = step(params, opt_state, self.x[i : i + 8], self.y[i : i + 8])
        state.replace(params=params, opt_state=opt_state).to_keras(model).assign_to(model)


FITS = [
    row
    for row in ROWS
    if row.name.endswith("/plain") or row.name in ("adam/accumulated", "adam/schedule_cosine", "multi")
]


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=r.name, marks=[] if r.name == "adam/plain" else [pytest.mark.slow]) for r in FITS],
)
def test_epochs_of_optax_between_epochs_of_fit_change_nothing(row):
    fits = Fits(row)
    alone, switched = fits.compiled(), fits.compiled()
    fits.fit(alone, 6)
    fits.fit(switched, 2)
    fits.in_optax(switched, 2)
    fits.fit(switched, 2)
    weights = [{str(i): w for i, w in enumerate(m.get_weights())} for m in (switched, alone)]
    assert relative(*weights) <= TOLERANCE
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("name", DOUBLE)
def test_in_float64_only_the_last_bits_differ(name):
    with double():
        runs = Runs(next(row for row in ROWS if row.name == name))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(runs.start.params)} == {"float64"}
        off = relative(runs.optax_50.params, runs.keras_50.params)
        assert off <= DOUBLE[name], off
