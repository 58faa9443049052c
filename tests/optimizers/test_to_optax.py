"""Keras optimizers as native optax: every row of the contract table, against Keras itself."""

import copy
import warnings
from functools import cached_property

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge.optimizers.rules import RULES
from keras_flax_bridge.tree.paths import fill_tree, flatten_tree
from tests.support.capabilities import needs, where
from tests.support.cases import differing, double
from tests.support.optimizers import GRADS, PARAMS, built, relative
from tests.tables.optimizers import CHUNK, DOUBLE, OPTIMIZERS, ROWS, STEPS, TOLERANCE, Row, Small, make, noise


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


@pytest.mark.every(slow=4)
@pytest.mark.slow
def test_a_free_run_is_that_of_keras(runs):
    assert relative(runs.optax_50.params, runs.keras_50.params) <= TOLERANCE
    assert relative(runs.start.params, runs.keras_50.params) > 1e-2, "nothing moved"


@pytest.mark.every(fast=2, slow=3)
def test_slots_of_a_free_run_are_those_of_keras(runs):
    slots, expected = (flatten_tree(s.opt_state) for s in (runs.to_keras(runs.optax_50), runs.keras_50))
    assert slots.keys() == expected.keys()
    off = {path: relative(slots[path], leaf) for path, leaf in expected.items() if np.any(leaf)}
    assert {p: value for p, value in off.items() if value > 10 * TOLERANCE} == {}


@pytest.mark.every(slow=4)
@pytest.mark.slow
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
        for p in differing(back.opt_state, runs.keras_20.opt_state)
        if not p.startswith(("v/", "inner_optimizer/v/"))
    ] == []
    assert differing(back.params, runs.keras_20.params) == []
    assert differing(runs.to_optax(runs.to_keras(runs.optax_20)).opt_state, runs.optax_20.opt_state) == []


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


# --- gradients of the scaled loss, and of the loss


@pytest.mark.parametrize("fixed", [True, False])
def test_to_optax_divides_as_keras_does(fixed):
    optimizer = K.SGD(0.1, loss_scale_factor=8.0) if fixed else K.LossScaleOptimizer(K.SGD(0.1), 8.0)
    model, optimizer = built(optimizer)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    tx = kfb.to_optax(optimizer)
    scaled = jax.tree.map(lambda p: 8.0 * p, state.params)
    updates, _ = tx.update(scaled, tx.init(state.params), state.params)
    expected = state.apply_gradients(grads=state.params).params
    assert relative(optax.apply_updates(state.params, updates), expected) <= 1e-7
    moved = state.to_optax()
    assert relative(moved.apply_gradients(grads=state.params).params, expected) <= 1e-7


# --- parameters of a Flax program, optimizers that aren't built


def test_an_unbuilt_optimizer_is_asked_for_names():
    optimizer = K.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    before = copy.copy(vars(optimizer).get("_exclude_from_weight_decay_cache"))
    tx = kfb.to_optax(optimizer)
    params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(updates["dense"]["kernel"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["dense"]["bias"][0]) == 0
    assert vars(optimizer)["_exclude_from_weight_decay_cache"] == before


def test_variables_alike_that_are_treated_alike_need_no_model():
    _, optimizer = built(K.AdamW(0.1))
    assert kfb.to_optax(optimizer).init({"any": {"tree": jnp.ones(7)}})


@needs("MultiOptimizer")
def test_variables_alike_that_are_treated_differently_need_the_model():
    def layers():
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4, name="head")]
        )
        rules = K.OptimizerMap(K.Adam(0.1), {".*head.*": K.SGD(0.1)})
        optimizer = K.MultiOptimizer(rules)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    model, optimizer = layers()
    params = kfb.TrainState.from_keras(model, optimizer=optimizer).params
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"params/dense/bias.*Pass model="):
        kfb.to_optax(optimizer).init(params)
    tx = kfb.to_optax(optimizer, model=model)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert float(updates["head"]["bias"][0]) == pytest.approx(-0.1)
    assert updates["dense"]["bias"][0] != updates["head"]["bias"][0]


@pytest.mark.parametrize(
    "name", [n if n == "muon" else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_optax_finds_the_parameters_in_a_state(name):
    model, optimizer = Row(name, make(name, {"use_ema": True})).build()
    params = kfb.TrainState.from_keras(model, optimizer=optimizer).params
    tx = kfb.to_optax(optimizer)
    marked = optax.tree_map_params(tx, lambda _: "p", jax.eval_shape(tx.init, params), is_leaf=None)
    assert "p" in jax.tree.leaves(marked)


class Own(K.SGD):
    """An optimizer of the user's own."""


REFUSED = {
    "own class": (lambda: Own(0.1), "Own.*as_optax"),
    "own class inside": (lambda: K.LossScaleOptimizer(Own(0.1)), "Own.*as_optax"),
    "nadam in a loss scale": (lambda: K.LossScaleOptimizer(K.Nadam(0.1)), "Nadam"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_converted_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(kfb.UnsupportedOptimizerError, match=message):
        kfb.to_optax(make())


def test_variables_that_gradients_overwrite_are_refused():
    model, optimizer = built(K.SGD(0.1))
    model.gain.overwrite_with_gradient = True
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"gain.*float8"):
        kfb.to_optax(optimizer)


def excluding():
    optimizer = K.AdamW(0.1)
    optimizer.exclude_from_weight_decay(var_list=[keras.Variable([1.0])])
    return optimizer


NEEDY = {
    **where("MultiOptimizer", {"groups": lambda: K.MultiOptimizer(K.OptimizerMap(K.SGD(0.1)))}),
    "layers": lambda: K.Muon(exclude_layers=["a"]),
    "variables": excluding,
}


@pytest.mark.parametrize("name", NEEDY)
def test_who_needs_variables_must_be_built(name):
    with pytest.raises(kfb.NotBuiltError, match="model="):
        kfb.to_optax(NEEDY[name]()).init(PARAMS)


def test_gradients_of_another_structure_are_refused():
    tx = kfb.to_optax(K.SGD(0.1))
    with pytest.raises(kfb.StructureMismatchError) as error:
        tx.update({**GRADS, "gain": None}, tx.init(PARAMS), PARAMS)
    assert error.value.missing == ("gain",)
    decayed = kfb.to_optax(K.AdamW(0.1))  # its updates depend on the parameters
    with pytest.raises(kfb.StructureMismatchError, match="params"):
        decayed.update(GRADS, decayed.init(PARAMS))


@pytest.mark.parametrize(
    "name", ["adam", "nadam", "lamb", "muon", *where("ScheduleFreeAdamW", ["schedule_free"])]
)
def test_a_factor_that_rounds_to_1_is_warned_of(name):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = kfb.to_optax(make(name, {})())
    with pytest.warns(UserWarning, match=r"params/dense/bias: .*beta_2=0.999 .* is 1 in bfloat16"):
        state = tx.init(half)
    if name in ("adam", "muon"):
        assert tx.update(half, state, half)[0]["dense"]["bias"][0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfb.to_optax(K.Adam(0.1, beta_2=0.9)).init(half)


def test_every_row_of_the_table_has_a_rule():
    kinds = {type(row.make()) for row in ROWS}
    assert kinds >= RULES.keys()
