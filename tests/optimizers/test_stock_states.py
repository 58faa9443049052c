"""States of optax's own optimizers, which go on in Keras."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.optimizers.rules import RULES
from tests.support.capabilities import where
from tests.support.optimizers import GRADS, PARAMS, relative
from tests.tables.optimizers import OPTIMIZERS, SCHEDULES, STEPS, TOLERANCE, Row, make, noise

WITH = {
    "sgd_momentum+schedule": ("sgd_momentum", {"learning_rate": SCHEDULES["cosine"]}),
    "lamb+decay": ("lamb", {"weight_decay": 0.1}),
    **where(
        "ScheduleFreeAdamW",
        {"schedule_free+schedule": ("schedule_free", {"learning_rate": SCHEDULES["cosine"]})},
    ),
}
STOCK = {**{name: (name, {}) for name in OPTIMIZERS if name != "ftrl"}, **WITH}
FAST = ("sgd_momentum", "adam")
# how far the stock optimizer runs from Keras's, or from its own way when Keras's takes over
OFF = {
    "sgd_momentum+schedule": 0.39,
    "adam": 3e-6,
    "adam_epsilon": 0.02,
    "amsgrad": 0.1,
    "adamw": 3e-6,
    "adamax": 1e-7,
    "adamax_epsilon": 3e-4,
    "adafactor": 0.06,
    "nadam": 0.05,
    "lamb+decay": 0.03,
    "muon": 0.2,
    "schedule_free_warmup": 0.014,
    "schedule_free+schedule": 0.024,
}


class StockRun:
    """A stock optimizer of optax, and the Keras one that takes over at step 20, or from the start."""

    def __init__(self, name):
        base, options = STOCK[name]
        self.model, self.optimizer = Row(name, make(base, options)).build()
        self.state = kfb.TrainState.from_keras(self.model, optimizer=self.optimizer)
        self.stock = RULES[type(self.optimizer)].stock
        rate = keras_internals.learning_rate(self.optimizer)
        tx = self.stock.make(
            self.optimizer, keras_internals.number(rate) if isinstance(rate, keras.Variable) else rate
        )
        self.start = self.state.replace(tx=tx, opt_state=tx.init(self.state.params))
        self.noise = noise(self.state.params, overflow=False)

    def run(self, state, begin, end):
        def step(state, noise):
            grads = jax.tree.map(lambda p, n: 0.5 * (p - 0.3) + n, state.params, noise)
            return state.apply_gradients(grads=grads), None

        noise = jax.tree.map(lambda n: n[begin:end], self.noise)
        return jax.jit(lambda state, noise: jax.lax.scan(step, state, noise)[0])(state, noise)


@pytest.mark.every(slow=3)
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in STOCK])
def test_the_state_of_a_stock_optimizer_goes_on_in_keras(name):
    runs = StockRun(name)
    at_20 = runs.run(runs.start, 0, 20)
    opt_state, label = kfb.opt_state_from_optax(
        runs.optimizer, at_20.opt_state, at_20.params, at_20.step, label=True
    )
    assert (label.stock, int(opt_state["iteration"])) == (runs.stock.name, 20)
    assert label.exact == (not runs.stock.differs(runs.optimizer)) == (name not in OFF)
    switched = runs.state.replace(params=at_20.params, opt_state=opt_state, step=at_20.step)
    end = runs.run(at_20, 20, STEPS).params
    ends = runs.run(switched, 20, STEPS).params, runs.run(runs.state, 0, STEPS).params
    off = max(relative(end, other) for other in ends)
    expected = OFF.get(name, 0)
    assert off <= max(TOLERANCE, 2 * expected)
    assert off >= expected / 2 or expected <= TOLERANCE
    jax.clear_caches()


def test_the_label_says_how_far_a_stock_optimizer_is_off_at_most():
    worst = {}
    for name in OFF.keys() & STOCK.keys():
        off = OFF[name]
        stock = RULES[type(make(*STOCK[name])())].stock
        worst[stock.why] = max(worst.get(stock.why, 0), off)
    given = {rule.stock.why: rule.stock.off for rule in RULES.values() if rule.stock and rule.stock.off}
    assert given == {why: pytest.approx(off, rel=0.25) for why, off in worst.items()}


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, jax.tree.map(lambda _: True, PARAMS)),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": tx}, {"dense": {"kernel": "a", "bias": "b"}, "gain": "b"}
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_stock_states_inside_others(wrapper):
    tx = WRAPPED[wrapper](optax.adam(0.1))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    found = kfb.opt_state_from_optax(K.Adam(0.1), state, PARAMS)
    assert int(found["iteration"]) == 1
    for slot, factor, order in (("momentums", 0.1, 1), ("velocities", 0.001, 2)):
        expected = jax.tree.map(lambda g, f=factor, o=order: f * g**o, GRADS)
        assert relative(found[slot], expected) < 1e-6


def test_an_injected_learning_rate_comes_along():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.25, momentum=0.9)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    found = kfb.opt_state_from_optax(K.SGD(0.1, momentum=0.9), state, PARAMS)
    assert float(found["learning_rate"]) == 0.25
    assert int(found["iteration"]) == 1
    np.testing.assert_allclose(found["momentums"]["dense"]["bias"], -0.25 * GRADS["dense"]["bias"])


@pytest.mark.slow
def test_a_cycle_of_multi_steps_goes_on():
    tx = optax.MultiSteps(optax.rmsprop(0.1, eps=1e-7), 4).gradient_transformation()
    params, state = PARAMS, tx.init(PARAMS)
    for i in range(1, 7):
        updates, state = tx.update(jax.tree.map(lambda g, i=i: i * g, GRADS), state, params)
        params = optax.apply_updates(params, updates)
    found = kfb.opt_state_from_optax(K.RMSprop(0.1, gradient_accumulation_steps=4), state, params)
    assert int(found["iteration"]) == 6
    np.testing.assert_allclose(found["accumulated_gradients"]["gain"], 11 * GRADS["gain"], rtol=1e-6)


def test_a_state_without_a_count_needs_the_step():
    state = optax.adagrad(0.1).init(PARAMS)
    with pytest.raises(kfb.NotBuiltError, match="step"):
        kfb.opt_state_from_optax(K.Adagrad(0.1), state, PARAMS)
    assert int(kfb.opt_state_from_optax(K.Adagrad(0.1), state, PARAMS, 7)["iteration"]) == 7


@pytest.mark.slow
def test_moments_that_optax_factored_are_found_where_the_dimensions_agree():
    tx = optax.adafactor(0.1)
    shapes = {"wide": (128, 200), "tall": (200, 128), "small": (3, 4), "vector": (5,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    grads = {n: jax.random.normal(jax.random.key(i), s) for i, (n, s) in enumerate(shapes.items())}
    _, state = tx.update(grads, tx.init(params), params)
    found = kfb.opt_state_from_optax(K.Adafactor(0.1), state, params)
    for name in ("wide", "tall", "small"):
        np.testing.assert_allclose(found["r"][name], jnp.mean(grads[name] ** 2, -1), rtol=1e-5)
        np.testing.assert_allclose(found["c"][name], jnp.mean(grads[name] ** 2, -2), rtol=1e-5)
    kernel = {"conv": jnp.ones((128, 200, 3, 4))}
    with pytest.raises(kfb.UnsupportedOptimizerError, match="params/conv"):
        kfb.opt_state_from_optax(K.Adafactor(0.1), tx.init(kernel), kernel)
