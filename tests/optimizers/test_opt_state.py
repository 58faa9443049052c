"""States of optimizers across the bridge: of optax's own, and what is refused."""

import copy
import warnings

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
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.optimizers.test_to_optax import different, relative
from tests.support.capabilities import needs, where
from tests.tables.optimizers import OPTIMIZERS, ROWS, SCHEDULES, STEPS, TOLERANCE, Row, Small, make, noise

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "gain": jnp.ones(())}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.arange(1.0, p.size + 1).reshape(p.shape), PARAMS)


def built(optimizer, **options):
    model = Small(**options)
    model.build((None, 5, 5, 2))
    optimizer.build(model.trainable_variables)
    return model, optimizer


def trained(optimizer, steps=3):
    """A state that Keras's optimizer trained."""
    model, optimizer = built(optimizer)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    for _ in range(steps):
        state = state.apply_gradients(grads=jax.tree.map(lambda p: p + 0.1, state.params))
    return model, state


# --- states of optax's own optimizers

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


# --- a whole state


@pytest.mark.parametrize("with_model", [True, False])
def test_a_state_keeps_its_other_fields(with_model):
    model, state = trained(K.Adam(0.1))
    moved = state.to_optax(model if with_model else None)
    back = moved.to_keras()
    for name in ("step", "params", "non_trainable", "metrics", "eval_metrics"):
        assert (
            jax.tree.leaves(getattr(moved, name)) == jax.tree.leaves(getattr(state, name))
            or relative(getattr(moved, name), getattr(state, name)) == 0
        )
    assert back.tx.optimizer is state.tx.optimizer
    assert not diff_trees(flatten_tree(back.opt_state), flatten_tree(state.opt_state))


def test_a_converted_state_can_be_donated():
    _, state = trained(K.AdamW(0.1, use_ema=True, gradient_accumulation_steps=2))
    moved = jax.tree.map(jnp.copy, state).to_optax()
    step = jax.jit(lambda s: s.apply_gradients(grads=s.params), donate_argnums=0)
    after = step(moved)
    assert int(after.step) == int(state.step) + 1


def test_an_abstract_state_is_converted_as_shapes():
    model, state = trained(K.Adam(0.1))
    abstract = jax.eval_shape(lambda s: s, state)
    moved = abstract.to_optax(model)
    expected = jax.eval_shape(lambda s: s, state.to_optax(model))
    assert moved.opt_state == expected.opt_state
    assert moved.to_keras().opt_state == abstract.opt_state


def test_conversion_works_under_jit():
    model, state = trained(K.Nadam(0.1))
    inside = jax.jit(lambda s: s.to_optax(model).to_keras())(state)
    assert relative(inside.opt_state, state.opt_state) == 0


def test_models_in_one_state_move_together_or_alone():
    models = {name: built(K.Adam(0.1))[0] for name in ("a", "b")}
    optimizers = {"a": K.Adam(0.1), "b": K.Lion(0.1)}
    state = kfb.TrainState.from_keras(models, optimizer=optimizers)
    moved = state.to_optax()
    grads = jax.tree.map(jnp.ones_like, state.params)
    ends = [s.apply_gradients(grads=grads).params for s in (moved, state, state.to_optax({"b": models["b"]}))]
    assert relative(ends[0], ends[1]) <= TOLERANCE
    assert relative(ends[2], ends[1]) <= TOLERANCE
    assert relative(moved.to_keras().opt_state, state.opt_state) == 0


def test_a_moved_model_keeps_its_rate_in_the_state():
    model, optimizer = built(K.Adam(0.125))
    state = kfb.TrainState.from_keras(model, optimizer=optimizer, copy=False).to_optax(model)
    assert float(state.opt_state.hyperparams["learning_rate"]) == 0.125
    with pytest.raises(kfb.OwnershipError, match="learning rate"):
        state.tx.init(state.params)


def test_a_state_goes_into_a_compiled_model_with_its_slots():
    _, state = trained(K.AdamW(0.1, weight_decay=0.1))
    other = Small()
    other.build((None, 5, 5, 2))
    other.compile(K.AdamW(0.3, weight_decay=0.1), "mse")
    state.to_optax().to_keras(other).assign_to(other)
    assert int(other.optimizer.iterations) == 3
    assert float(other.optimizer.learning_rate) == float(np.float32(0.1))


def test_a_near_rule_is_said_so(caplog):
    model = Small()
    model.build((None, 5, 5, 2))
    model.compile(K.Adam(0.1), "mse")
    state = kfb.TrainState.from_keras(model, optimizer=optax.adam(0.1))
    state = state.apply_gradients(grads=state.params)
    moved = state.to_keras(model)
    assert "a different rule than optax.adam" in caplog.text
    assert int(moved.opt_state["iteration"]) == 1


# --- checkpoints


def compiled(rate=0.1):
    model = Small()
    model.build((None, 5, 5, 2))
    model.compile(K.AdamW(rate, use_ema=True, gradient_accumulation_steps=2), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("to_optax", [True, False])
@pytest.mark.parametrize("abstract", [True, False])
def test_a_checkpoint_of_one_side_restores_on_the_other(to_optax, abstract, tmp_path):
    state = kfb.TrainState.from_keras(compiled())
    for _ in range(3):
        state = state.apply_gradients(grads=state.params)
    moved = state.to_optax()
    kfb.save(tmp_path / "saved", state if to_optax else moved)
    like = kfb.TrainState.from_keras(compiled(0.3))
    like = like.to_optax() if to_optax else like
    like = jax.eval_shape(lambda s: s, like) if abstract else like
    restored = kfb.restore(tmp_path / "saved", like)
    expected = moved if to_optax else state
    for name in ("params", "opt_state", "step"):
        assert different(getattr(restored, name), getattr(expected, name)) == []
    assert restored.tx == like.tx


def test_a_checkpoint_of_optax_fills_a_model_and_its_optimizer(tmp_path):
    state = kfb.TrainState.from_keras(compiled())
    state = state.apply_gradients(grads=state.params)
    kfb.save(tmp_path / "saved", state.to_optax())
    model = compiled(0.3)
    kfb.restore(tmp_path / "saved", model)
    assert different(kfb.TrainState.from_keras(model).opt_state, state.opt_state) == []
    other = compiled()
    other.compile(K.RMSprop(), "mse")
    with pytest.raises(kfb.StructureMismatchError):
        kfb.restore(tmp_path / "saved", other)


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


# --- bad input


def test_the_state_of_another_optimizer_is_refused():
    _, state = trained(K.RMSprop(0.1))
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.opt_state_to_optax(built(K.Adam(0.1))[1], state.opt_state, state.params)
    assert "momentums/conv/kernel" in error.value.missing
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"ScaleByRmsState.*Adam"):
        kfb.opt_state_from_optax(K.Adam(0.1), state.to_optax().opt_state, state.params)


def test_states_of_other_parameters_are_refused():
    _, state = trained(K.Adam(0.1))
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.opt_state_to_optax(state.tx.optimizer, state.opt_state, PARAMS)
    assert "momentums/dense/kernel" in error.value.mismatched
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.opt_state_from_optax(state.tx.optimizer, state.to_optax().opt_state, PARAMS)
    assert "momentums/conv/kernel" in error.value.unexpected


def test_missing_slots_are_named():
    _, state = trained(K.Adam(0.1))
    opt_state = {name: slot for name, slot in state.opt_state.items() if name != "velocities"}
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.opt_state_to_optax(state.tx.optimizer, opt_state, state.params)
    paths = {f"velocities/{join_path(path)}" for path in flatten_tree(state.params)}
    assert set(error.value.missing) == paths
    averaged = built(K.Adam(0.1, use_ema=True))[1]
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.opt_state_from_optax(averaged, state.to_optax().opt_state, state.params)
    assert "model_variables_moving_average/gain" in error.value.missing


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


def test_a_nadam_that_was_built_before_keeps_its_product():
    model, inner = built(K.Nadam(0.1))
    optimizer = K.LossScaleOptimizer(inner)
    optimizer.build(model.trainable_variables)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    ends = [s.apply_gradients(grads=state.params).params for s in (state, state.to_optax())]
    assert relative(*ends) <= TOLERANCE


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


def test_an_optax_state_is_not_converted_again():
    _, state = trained(K.SGD(0.1))
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"to_keras"):
        state.to_optax().to_optax()


def test_gradients_of_another_structure_are_refused():
    tx = kfb.to_optax(K.SGD(0.1))
    with pytest.raises(kfb.StructureMismatchError) as error:
        tx.update({**GRADS, "gain": None}, tx.init(PARAMS), PARAMS)
    assert error.value.missing == ("gain",)
    with pytest.raises(kfb.StructureMismatchError, match="params"):
        tx.update(GRADS, tx.init(PARAMS))


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
