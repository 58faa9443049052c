"""`as_optax` where optax's own transformations go: meshes, shapes, maps over states, rates, no parameters."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from keras import layers
from keras import optimizers as K

import keras_flax_bridge as kfb
from tests.support.capabilities import needs
from tests.support.optimizers import relative

PARAMS = {"w": jnp.ones((8, 2)), "b": jnp.ones(2)}
GRADS = jax.tree.map(lambda p: 0.5 * p, PARAMS)


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit], ids=str
)
def test_slots_are_placed_as_their_parameters(kind):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    tx = kfb.as_optax(K.Adam(0.1, use_ema=True))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("x", None))
        params = {"w": jax.device_put(PARAMS["w"], sharding)}
        state = tx.init(params)
        slots = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert [slot.sharding for slot in slots] == [sharding] * 3
        after = tx.update(params, state, params)[1]
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)  # scan asks for that
    if kind == AxisType.Explicit:
        with jax.set_mesh(mesh):
            inside = jax.eval_shape(tx.init, params)
            assert inside["momentums"]["w"].sharding.spec == sharding.spec


def test_shapes_initialize_as_in_optax():
    specs = jax.eval_shape(lambda: PARAMS)
    assert relative(kfb.as_optax(K.Adam(0.1)).init(specs), kfb.as_optax(K.Adam(0.1)).init(PARAMS)) == 0


@needs("ScheduleFreeAdamW")
def test_slots_that_start_with_abstract_parameters_are_abstract():
    state = kfb.as_optax(K.ScheduleFreeAdamW(0.1)).init(jax.eval_shape(lambda: PARAMS))
    assert {type(leaf).__name__ for leaf in jax.tree.leaves(state)} == {"ArrayImpl", "ShapeDtypeStruct"}


MAPPED = {
    "adam": lambda: K.Adam(0.1),
    "all": lambda: K.LossScaleOptimizer(K.Adam(0.1, gradient_accumulation_steps=2, use_ema=True)),
    "adafactor": lambda: K.Adafactor(0.1),
}


@pytest.mark.parametrize("name", MAPPED)
def test_maps_over_parameters_find_its_slots(name):
    tx = kfb.as_optax(MAPPED[name]())
    state, names = tx.init(PARAMS), {"w": "W", "b": "B"}
    mapped = optax.tree.map_params(tx, lambda _, n: n, state, names, transform_non_params=lambda _: "-")
    paths = jax.tree_util.tree_leaves_with_path(mapped)
    for keys, value in paths:
        assert value == {"w": "W", "b": "B"}.get(keys[-1].key, "-"), keys
    assert len(paths) == len(jax.tree.leaves(state))


# --- without parameters

READS = {
    "decay": (lambda: K.AdamW(0.1), "weight decay"),
    "average": (lambda: K.SGD(0.1, use_ema=True), "average"),
    "lamb": (lambda: K.Lamb(0.1), "rule of Lamb"),
    "ftrl": (lambda: K.Ftrl(0.1), "rule of Ftrl"),
    "adafactor": (lambda: K.LossScaleOptimizer(K.Adafactor(0.1)), "rule of Adafactor"),
}
FREE = {
    "sgd": lambda: K.SGD(0.1),
    "adam": lambda: K.Adam(0.1, clipnorm=1.0),
    "scaled": lambda: K.LossScaleOptimizer(K.SGD(0.1, momentum=0.9), 1.0),
}
doors = pytest.mark.parametrize("door", [kfb.as_optax, kfb.to_optax])


@doors
@pytest.mark.parametrize("name", FREE)
def test_rules_that_read_no_parameters_need_none(name, door):
    tx = door(FREE[name]())
    state = tx.init(PARAMS)
    assert relative(tx.update(GRADS, state)[0], tx.update(GRADS, state, PARAMS)[0]) <= 1e-6


@doors
@pytest.mark.parametrize("name", READS)
def test_rules_that_read_them_say_so(name, door):
    make, message = READS[name]
    tx = door(make())
    with pytest.raises(kfb.StructureMismatchError, match=message):
        tx.update(GRADS, tx.init(PARAMS))


# --- learning rates


def moved(rate, make):
    """What one step of SGD moves the parameters by, of a rate that is traced."""
    tx = make(rate)
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]["b"]


def of_state(rate):
    tx = kfb.as_optax(K.SGD())

    def update(grads, state, params):
        return tx.update(grads, {**state, "learning_rate": rate}, params)

    return optax.GradientTransformation(tx.init, update)


RATES = {
    "argument": lambda rate: kfb.as_optax(K.SGD(), learning_rate=rate),
    "function": lambda rate: kfb.as_optax(K.SGD(lambda: rate)),
    "schedule": lambda rate: kfb.as_optax(K.SGD(), learning_rate=lambda count: rate + 0 * count),
    "inside": lambda rate: kfb.as_optax(K.LossScaleOptimizer(K.SGD(), 1.0), learning_rate=rate),
    "state": of_state,
}


@pytest.mark.parametrize("name", RATES)
def test_rates_may_be_traced(name, leaks):
    np.testing.assert_allclose(jax.jit(lambda rate: moved(rate, RATES[name]))(0.3), -0.15, rtol=1e-6)


INJECTED = {
    "itself": lambda: optax.inject_hyperparams(kfb.as_optax)(K.SGD(), learning_rate=0.5),
    "function": lambda: optax.inject_hyperparams(lambda rate: kfb.as_optax(K.SGD(lambda: rate)))(rate=0.5),
    "schedule": lambda: optax.inject_hyperparams(kfb.as_optax)(
        K.SGD(), learning_rate=optax.constant_schedule(0.5)
    ),
}


@pytest.mark.parametrize("name", INJECTED)
def test_rates_may_be_injected(name):
    tx = INJECTED[name]()
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["b"], -0.25, rtol=1e-6)
    assert [float(rate) for rate in state.hyperparams.values()] == [0.5]


# --- which variable a leaf is


def two():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, kernel_constraint="non_neg"), layers.Dense(4)]
    )


def leaves_of(model, nested):
    flat = {variable.path: variable.value for variable in model.trainable_variables}
    if not nested:
        return flat
    tree = {}
    for path, leaf in flat.items():
        *above, name = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[name] = leaf
    return tree


@pytest.mark.parametrize("nested", [True, False])
def test_a_built_optimizer_knows_variables_by_their_paths(nested):
    model = two()
    params = leaves_of(model, nested)
    optimizer = K.SGD(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[1].kernel])
    optimizer.build(model.trainable_variables)
    grads = jax.tree.map(jnp.zeros_like, params)
    ends = []
    for tx in (kfb.as_optax(optimizer), kfb.to_optax(optimizer)):
        ends.append(optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0]))
    assert relative(*ends) <= 1e-6
    model.layers[0].kernel.assign(jnp.maximum(0.5 * model.layers[0].kernel, 0))  # decayed and constrained
    kernels = [leaf for leaf in jax.tree.leaves(ends[0]) if leaf.ndim == 2]
    expected = [model.layers[0].kernel.value, model.layers[1].kernel.value]
    for kernel, value in zip(kernels, expected, strict=True):
        np.testing.assert_allclose(kernel, value, rtol=1e-6)


def test_variables_that_can_not_be_told_apart_are_named():
    model = two()
    optimizer = K.SGD(1.0)
    optimizer.build(model.trainable_variables)
    tx = kfb.as_optax(optimizer)
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"params/dense/kernel: .*variable\.path"):
        tx.init(kfb.TrainState.from_keras(model, optimizer="sgd").params)
    params = kfb.TrainState.from_keras(model, optimizer="sgd").params
    assert kfb.as_optax(optimizer, model=model).init(params).keys() == {"iteration", "learning_rate"}
