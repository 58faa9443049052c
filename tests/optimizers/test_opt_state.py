"""States of optimizers across the bridge, alone and with the whole state; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.cases import differing
from tests.support.optimizers import PARAMS, built, relative
from tests.tables.optimizers import TOLERANCE, Small


def trained(optimizer, steps=3):
    """A state that Keras's optimizer trained."""
    model, optimizer = built(optimizer)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    for _ in range(steps):
        state = state.apply_gradients(grads=jax.tree.map(lambda p: p + 0.1, state.params))
    return model, state


# --- a whole state


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert differing(getattr(restored, name), getattr(expected, name)) == []
    assert restored.tx == like.tx


def test_a_checkpoint_of_optax_fills_a_model_and_its_optimizer(tmp_path):
    state = kfb.TrainState.from_keras(compiled())
    state = state.apply_gradients(grads=state.params)
    kfb.save(tmp_path / "saved", state.to_optax())
    model = compiled(0.3)
    kfb.restore(tmp_path / "saved", model)
    assert differing(kfb.TrainState.from_keras(model).opt_state, state.opt_state) == []
    other = compiled()
    other.compile(K.RMSprop(), "mse")
    with pytest.raises(kfb.StructureMismatchError):
        kfb.restore(tmp_path / "saved", other)


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


def test_a_nadam_that_was_built_before_keeps_its_product():
    model, inner = built(K.Nadam(0.1))
    optimizer = K.LossScaleOptimizer(inner)
    optimizer.build(model.trainable_variables)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    ends = [s.apply_gradients(grads=state.params).params for s in (state, state.to_optax())]
    assert relative(*ends) <= TOLERANCE


def test_an_optax_state_is_not_converted_again():
    _, state = trained(K.SGD(0.1))
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"to_keras"):
        state.to_optax().to_optax()
