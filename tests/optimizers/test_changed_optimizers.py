"""A state of one optax optimizer, and a checkpoint of another: every ordered pair says all that differs."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.cases import differing
from tests.support.optimizers import relative

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),  # without a state
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "schedule": lambda: optax.sgd(optax.constant_schedule(0.1)),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),  # of the same state
    "amsgrad": lambda: optax.amsgrad(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "several": lambda: optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)},
        lambda tree: jax.tree.map(lambda leaf: "a" if leaf.ndim > 1 else "b", tree),
    ),
    "multi_steps": lambda: optax.MultiSteps(optax.lion(0.1), 2).gradient_transformation(),
}
stored_as = pytest.mark.parametrize(
    "stored", [n if n == "adam" else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)


def state_of(name, steps=0):
    keras.utils.set_random_seed(steps)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    state = kfb.TrainState.from_keras(model, optimizer=OPTIMIZERS[name]())
    for _ in range(steps):
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    return state


def slots(state):
    return {("opt_state", *path): leaf for path, leaf in flatten_tree(state.opt_state).items()}


def listed(paths):
    return sorted(map(join_path, paths))


@pytest.mark.slow
@stored_as
def test_each_other_optimizer_gets_what_it_has_in_common(stored, tmp_path):
    given = state_of(stored, 1)
    kfb.save(tmp_path / "one", given)
    for name in OPTIMIZERS.keys() - {stored}:
        like = state_of(name)
        expected = diff_trees(slots(given), slots(like))
        if not expected:
            found = kfb.restore(tmp_path / "one", like)
        else:
            with pytest.raises(kfb.StructureMismatchError) as caught:
                kfb.restore(tmp_path / "one", like)
            error = caught.value
            for kind in ("missing", "unexpected", "mismatched"):
                assert sorted(getattr(error, kind)) == listed(getattr(expected, kind)), (name, kind)
            found = kfb.restore(tmp_path / "one", like, partial=True)
        common = slots(given).keys() - expected.unexpected.keys() - expected.mismatched.keys()
        for path, leaf in slots(found).items():
            np.testing.assert_array_equal(leaf, (slots(given) if path in common else slots(like))[path])
        assert differing(found.params, given.params) == []
        assert found.tx is like.tx


def test_renamed_slots_are_found(tmp_path):
    given = state_of("adam", 1)
    kfb.save(tmp_path / "one", given)
    rename = [("^opt_state/0/", "opt_state/1/0/")]
    found = kfb.restore(tmp_path / "one", state_of("clipped"), rename=rename)
    assert differing(found.opt_state[1], given.opt_state) == []


@stored_as
def test_it_goes_on_in_keras(stored):
    state = state_of(stored, 1)
    moved = state.to_keras()
    assert isinstance(moved.tx.optimizer, kfb.OptaxOptimizer)
    grads = jax.tree.map(lambda p: 0.5 - p, state.params)
    ends = [one.apply_gradients(grads=grads).params for one in (state, moved)]
    assert relative(*ends) <= 1e-6
    assert int(moved.opt_state["iteration"]) == 1


def test_it_goes_on_in_a_model_compiled_with_it():
    state = state_of("clipped", 2)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(kfb.OptaxOptimizer(OPTIMIZERS["clipped"]()), "mse")
    state.to_keras(model).assign_to(model)
    assert int(model.optimizer.numbers["count"].value) == 2
    np.testing.assert_array_equal(model.get_weights()[0], state.params["dense"]["kernel"])
    model.compile(kfb.OptaxOptimizer("lion", 0.1), "mse")
    with pytest.raises(kfb.StructureMismatchError, match=r"unexpected  state/1/0/nu/dense/kernel"):
        state.to_keras(model)


@pytest.mark.parametrize("make", [kfb.to_optax, kfb.as_optax])
def test_what_came_from_keras_goes_back_to_it(make):
    optimizer = keras.optimizers.Adam(0.1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    state = kfb.TrainState.from_keras(model, optimizer=make(optimizer))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    moved = state.to_keras()
    assert type(moved.tx.optimizer) is keras.optimizers.Adam
    grads = jax.tree.map(jnp.ones_like, state.params)
    assert relative(*(one.apply_gradients(grads=grads).params for one in (state, moved))) <= 1e-6


def test_the_state_of_a_compiled_optimizer_is_restored_into_optax(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(kfb.OptaxOptimizer(optax.adam(0.1)), "mse")
    given = kfb.TrainState.from_keras(model)
    given = given.apply_gradients(grads=jax.tree.map(jnp.ones_like, given.params))
    kfb.save(tmp_path / "one", given)
    found = kfb.restore(tmp_path / "one", state_of("adam"))
    assert differing(found.opt_state[0].mu, given.opt_state["slots"]["mu"]) == []
    assert int(found.opt_state[0].count) == int(found.step) == 1
