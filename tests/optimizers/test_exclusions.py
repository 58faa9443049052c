"""Exclusions from weight decay survive wherever an optimizer is made once more: its config lacks them.

With gradients of zero an excluded weight stays as it is, bit for bit, and any other shrinks.
"""

import jax
import jax.numpy as jnp
import keras
import optax
import pytest
from keras import layers
from keras import optimizers as K

import keras_flax_bridge as kfb
from tests.support.capabilities import needs
from tests.support.cases import differing
from tests.support.exclusions import (
    OPTIMIZERS,
    build,
    by_optimizer,
    check,
    check_params,
    compiled,
    decaying,
    excluding,
)

# --- in one process


@pytest.mark.every(fast=2)
@by_optimizer
def test_states_and_transformations_keep_them(kind):
    model = compiled(kind)
    state = kfb.TrainState.from_keras(model)
    check(state)
    assert differing(state.tx.init(state.params), state.opt_state) == []
    check(state.to_optax(model))
    tx = kfb.as_optax(model.optimizer, model=model)
    zero = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = tx.update(zero, tx.init(state.params), state.params)
    check_params(state.params, optax.apply_updates(state.params, updates))


@pytest.mark.every(fast=2)
@pytest.mark.slow
@by_optimizer
def test_abstract_states_keep_them(kind, tmp_path):
    model = build()
    optimizer = OPTIMIZERS[kind](model)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    kfb.save(tmp_path / "one", state)
    given = kfb.TrainState.abstract(build, optimizer=optimizer)
    assert given.tx.optimizer is not optimizer
    check(kfb.restore(tmp_path / "one", given))
    check(kfb.restore(tmp_path / "one", kfb.TrainState.abstract(lambda: compiled(kind))))


@pytest.mark.slow
def test_abstract_states_of_several_models_keep_them(tmp_path):
    models = {"a": build(), "b": build()}
    optimizers = {name: OPTIMIZERS["variables"](model) for name, model in models.items()}
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(models, optimizer=optimizers))
    like = kfb.TrainState.abstract(lambda: {"a": build(), "b": build()}, optimizer=optimizers)
    restored = kfb.restore(tmp_path / "one", like)
    check(restored.part("a"))
    check(restored.part("b"))


@by_optimizer
def test_repartition_of_an_uncompiled_model_keeps_them(kind):
    model = build()
    state = kfb.TrainState.from_keras(model, optimizer=OPTIMIZERS[kind](model))
    check(state.repartition(model))
    model.layers[0].trainable = False
    frozen = state.repartition(model)
    assert list(frozen.params) == ["head"]
    model.layers[0].trainable = True
    check(frozen.repartition(model))


@by_optimizer
def test_repartition_into_another_model_keeps_them(kind):
    model = build()
    state = kfb.TrainState.from_keras(model, optimizer=OPTIMIZERS[kind](model), copy=False)
    check(state.repartition(build()))


@by_optimizer
def test_repartition_of_a_compiled_model_has_those_of_its_optimizer(kind):
    model = compiled(kind)
    state = kfb.TrainState.from_keras(model)
    model.layers[0].trainable = False
    compiled(kind, model)
    frozen = state.repartition(model)
    model.layers[0].trainable = True
    compiled(kind, model)
    check(frozen.repartition(model))


def test_variables_of_an_unbuilt_optimizer_are_refused():
    optimizer = OPTIMIZERS["variables"](build())
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"var_names=\[\.\.\.\]"):
        kfb.TrainState.abstract(build, optimizer=optimizer)
    optimizer.build(build().trainable_variables)
    other = lambda: keras.Sequential([keras.Input((3,)), layers.Dense(4)])  # noqa: E731
    with pytest.raises(kfb.StructureMismatchError, match="same architecture"):
        kfb.TrainState.abstract(other, optimizer=optimizer)


# --- what a config lacks besides


class Rate:
    """A learning rate that Keras can't serialize."""

    def __call__(self):
        return 0.1


def test_learning_rates_that_are_objects_are_kept():
    model = build()
    inner = excluding(K.AdamW(Rate(), weight_decay=0.5), ["bias"])
    for optimizer in (inner, K.LossScaleOptimizer(inner)):
        state = kfb.TrainState.from_keras(model, optimizer=optimizer)
        check(state.repartition(model))
        assert kfb.TrainState.abstract(build, optimizer=optimizer).tx.optimizer is not optimizer


def held_twice():
    shared = decaying(K.SGD)
    return K.MultiOptimizer(K.OptimizerMap(decaying(), {".*head.*": shared, ".*dense.*": shared}))


@pytest.mark.slow
@needs("MultiOptimizer")
def test_an_optimizer_that_is_held_twice_stays_one(tmp_path):
    model = build()
    model.compile(held_twice(), "mse")
    state = kfb.TrainState.from_keras(model)
    assert differing(state.tx.init(state.params), state.opt_state) == []
    kfb.save(tmp_path / "one", state)
    assert len(kfb.load_model(tmp_path / "one").optimizer.optimizers) == 2


@needs("MultiOptimizer")
@pytest.mark.parametrize("named", [True, False])
def test_optimizers_that_a_function_chooses_are_copied(named):
    first, head = excluding(decaying(), ["bias"]), excluding(decaying(K.SGD), ["bias"])

    def choose(variable):
        return head if "head" in variable.path else first

    optimizer = K.MultiOptimizer(choose if named else lambda variable: choose(variable))
    model = build()
    tx = kfb.as_optax(optimizer, model=model)
    params = kfb.TrainState.from_keras(build(), optimizer="sgd").params
    zero = jax.tree.map(jnp.zeros_like, params)
    check_params(params, optax.apply_updates(params, tx.update(zero, tx.init(params), params)[0]))
    assert not any(optimizer.built for optimizer in (first, head))
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    check(state.repartition(model))


@pytest.mark.slow
def test_variables_that_gradients_overwrite_start_without_slots():
    model = build()
    model.layers[0].bias.overwrite_with_gradient = True
    state = kfb.TrainState.from_keras(model, optimizer=decaying())
    assert differing(state.tx.init(state.params), state.opt_state) == []
