"""Any Keras optimizer behind optax's interface."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge.optimizers.muon import MOMENTUM
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.capabilities import needs
from tests.support.models.optimizers import ByPath, Nested
from tests.support.optimizers import relative
from tests.tables.optimizers import OPTIMIZERS, SCHEDULES, TOLERANCE, Sawtooth, Small, make

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "gain": jnp.ones(())}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.arange(1.0, p.size + 1).reshape(p.shape), PARAMS)


class Unregistered(K.schedules.LearningRateSchedule):
    """A schedule that Keras can't read from a config."""

    def __call__(self, step):
        return 0.1 / keras.ops.cast(step + 1, "float32")

    def get_config(self):
        return {}


CASES = {
    **{name: make(name, {}) for name in OPTIMIZERS},
    "own": lambda: ByPath(0.1),
    "nested": lambda: Nested(0.1),
    "schedule": lambda: K.SGD(SCHEDULES["cosine"], momentum=0.9),
    "own_schedule": lambda: K.Adam(Sawtooth()),
    "unregistered_schedule": lambda: K.Adam(Unregistered()),
    "options": lambda: K.AdamW(
        0.1, use_ema=True, ema_overwrite_frequency=2, gradient_accumulation_steps=2, clipnorm=0.5
    ),
    "loss_scale": lambda: K.LossScaleOptimizer(K.Adam(0.1), initial_scale=4.0),
}
FAST = ("adam", "own", "options")
cases = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def run(tx, params, steps=4):
    """A loop inside one program."""

    def step(carry, i):
        params, state = carry
        grads = jax.tree.map(lambda g, p: g * jnp.cos(i) + 0.1 * p, GRADS, params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0]


def by_hand(optimizer, steps=4):
    """The same loop by Keras's own means."""
    variables = [keras.Variable(leaf, name=path[-1]) for path, leaf in flatten_tree(PARAMS).items()]
    optimizer.build(variables)

    def step(carry, i):
        values, slots = carry
        grads = [g * jnp.cos(i) + 0.1 * p for g, p in zip(jax.tree.leaves(GRADS), values, strict=True)]
        return optimizer.stateless_apply(slots, grads, values), None

    start = [v.value for v in variables], [v.value for v in optimizer.variables]
    values = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps))[0])(start)[0]
    return jax.tree.unflatten(jax.tree.structure(PARAMS), values)


@pytest.mark.every(slow=2)
@pytest.mark.slow
@cases
def test_a_loop_in_one_program_is_that_of_keras(name, leaks):
    tx = kfb.as_optax(CASES[name]())
    params, _ = jax.jit(lambda params: run(tx, params))(PARAMS)
    assert relative(params, by_hand(CASES[name]())) <= TOLERANCE


@pytest.mark.every(slow=2)
@cases
def test_it_traces_as_shapes_and_over_a_stack(name):
    tx = kfb.as_optax(CASES[name]())
    state = tx.init(PARAMS)
    assert jax.eval_shape(tx.init, PARAMS) == jax.eval_shape(lambda s: s, state)
    stack = jax.tree.map(lambda p: jnp.stack([p, p + 1]), PARAMS)
    params, _ = jax.jit(jax.vmap(lambda params: run(tx, params, 2)))(stack)
    alone, _ = jax.jit(lambda params: run(tx, params, 2))(PARAMS)
    assert relative(jax.tree.map(lambda p: p[0], params), alone) <= TOLERANCE


def test_the_state_is_that_of_a_train_state():
    optimizer = K.RMSprop(0.1, centered=True, momentum=0.5)
    model = Small()
    model.build((None, 5, 5, 2))
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    assert not diff_trees(
        flatten_tree(kfb.as_optax(optimizer).init(state.params)), flatten_tree(state.opt_state)
    )


def test_inside_other_transformations():
    adam = kfb.as_optax(K.Adam(0.1))
    labels = {"dense": {"kernel": "a", "bias": "b"}, "gain": "b"}
    tx = optax.chain(optax.clip(0.05), optax.multi_transform({"a": adam, "b": optax.sgd(0.1)}, labels))
    params, _ = jax.jit(lambda p: run(tx, p))(PARAMS)
    other = optax.chain(
        optax.clip(0.05), optax.multi_transform({"a": kfb.to_optax(K.Adam(0.1)), "b": optax.sgd(0.1)}, labels)
    )
    assert relative(params, jax.jit(lambda p: run(other, p))(PARAMS)[0]) <= TOLERANCE


def test_in_a_linen_train_state():
    module = nn.Dense(2)
    x = jnp.ones((3, 4))
    params = module.init(jax.random.key(0), x)["params"]
    state = train_state.TrainState.create(apply_fn=module.apply, params=params, tx=kfb.as_optax(K.Adam(0.01)))

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(state.apply_fn({"params": p}, x) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(5):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert int(state.opt_state["iteration"]) == 5


def test_in_an_nnx_optimizer():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, kfb.as_optax(K.Lion(0.01)), wrt=nnx.Param)
    x = jnp.ones((3, 4))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def test_parameters_in_lists():
    params = [jnp.ones((3, 2)), (jnp.ones(2), jnp.ones(()))]
    tx = kfb.as_optax(K.Muon(0.1))
    state = tx.init(params)
    assert jax.tree.structure(state[MOMENTUM]) == jax.tree.structure(params)
    updates, after = tx.update(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0].shape == (2,)


def test_the_optimizer_stays_as_it_was():
    optimizer = K.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    tx = kfb.as_optax(optimizer)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert not optimizer.built
    assert float(updates["dense"]["kernel"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["dense"]["bias"][0]) == 0


@pytest.mark.slow
@needs("MultiOptimizer")
def test_paths_and_constraints_come_from_the_model():
    model = Small(constrained=True)
    model.build((None, 5, 5, 2))
    optimizer = K.MultiOptimizer(K.OptimizerMap(K.Adam(0.1), {".*dense.*": K.SGD(1.0)}))
    with pytest.raises(kfb.NotBuiltError, match="model="):
        kfb.as_optax(optimizer)
    params = kfb.TrainState.from_keras(model, optimizer=K.SGD(0.1)).params
    tx = kfb.as_optax(optimizer, model=model)
    grads = jax.tree.map(lambda p: jnp.full_like(p, -3.0), params)  # takes every norm above its limit
    new = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
    np.testing.assert_allclose(new["dense"]["bias"], params["dense"]["bias"] + 3.0)
    np.testing.assert_allclose(new["conv"]["bias"], params["conv"]["bias"] + 0.1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(new["dense"]["kernel"], axis=0), 0.8, rtol=1e-5)
    with pytest.raises(kfb.StructureMismatchError, match="params/gain_2"):
        tx.init({"gain_2": jnp.ones(())})


class Lossy(K.SGD):
    """A constructor that its config doesn't fill."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)


def excluding():
    optimizer = K.AdamW(0.1)
    optimizer.exclude_from_weight_decay(var_list=[keras.Variable([1.0])])
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lossy(2.0), "Lossy.*get_config"),
        (excluding, "var_names"),
        (lambda: optax.sgd(0.1), "needs no adapter"),
    ],
)
def test_what_can_not_be_adapted_is_refused(make, message):
    with pytest.raises(kfb.UnsupportedOptimizerError, match=message):
        kfb.as_optax(make()).init(PARAMS)


def test_wrong_arguments_are_refused():
    tx = kfb.as_optax(K.Adam(0.1))
    state = tx.init(PARAMS)
    with pytest.raises(kfb.StructureMismatchError, match="gain"):
        tx.update({"dense": GRADS["dense"]}, state, PARAMS)
    with pytest.raises(kfb.StructureMismatchError, match="momentums/gain"):
        tx.update(GRADS, kfb.as_optax(K.Adam(0.1)).init({"dense": PARAMS["dense"]}), PARAMS)
    with pytest.warns(UserWarning, match="is 1 in bfloat16"):
        tx.init({"w": jnp.ones(2, jnp.bfloat16)})
