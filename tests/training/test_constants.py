"""No variable is a silent constant of a step: it has the value of the state, or an error names it."""

import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.tree.paths import flatten_tree, nest_paths
from tests.tables import variables as table

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
BATCH = X, X[:, :1]


def trained(model, steps=3, **options):
    state, step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, **options)
    losses = []
    for _ in range(steps):
        state, logs = step(state.reset_metrics(), BATCH)
        losses.append(float(logs["loss"]))
    return state, losses


def evaluated(model, state, steps=3):
    step, losses = kfb.make_eval_step(model), []
    for _ in range(steps):
        state, logs = step(state.reset_metrics(), BATCH)
        losses.append(float(logs["loss"]))
    return state, losses


# --- the table: whose variable it is, who reads or assigns it, and what happens


@pytest.mark.parametrize("row", [*table.HELD, table.METRIC], ids=lambda row: row.name)
def test_a_variable_that_the_model_reaches_is_carried(row):
    model = row.build()
    state, _ = trained(model)
    variable = keras_internals.collect(model)
    before = {e.path: np.asarray(e.variable.value) for e in getattr(variable, row.tree)}
    after = {path: np.asarray(leaf) for path, leaf in flatten_tree(getattr(state, row.tree)).items()}
    assert row.path in after
    assert (before[row.path] != after[row.path]).any() == row.assigned
    state, _ = evaluated(model, state)
    later = flatten_tree(getattr(state, row.tree))[row.path]
    assert (np.asarray(later) != after[row.path]).any() == row.assigned


@pytest.mark.parametrize("row", table.HELD, ids=lambda row: row.name)
def test_its_value_is_an_input_of_the_step(row):
    model = row.build()
    step = kfb.make_train_step(model, donate=False)
    state = kfb.TrainState.from_keras(model)
    flat = flatten_tree(getattr(state, row.tree))
    flat[row.path] = flat[row.path] + jnp.ones_like(flat[row.path])
    other = state.replace(**{row.tree: nest_paths(flat)})
    assert float(step(state, BATCH)[1]["loss"]) != float(step(other, BATCH)[1]["loss"])


@pytest.mark.parametrize("row", table.HELD, ids=lambda row: row.name)
def test_it_is_checkpointed_and_restored_and_older_checkpoints_lack_it(row, tmp_path):
    model = row.build()
    state, _ = trained(model)
    kfb.save(tmp_path / "new", state)
    back = kfb.restore(tmp_path / "new", kfb.TrainState.from_keras(row.build()))
    jax.tree.map(np.testing.assert_array_equal, getattr(back, row.tree), getattr(state, row.tree))
    filled = kfb.restore(tmp_path / "new", row.build())
    again = kfb.TrainState.from_keras(filled)
    jax.tree.map(np.testing.assert_array_equal, getattr(again, row.tree), getattr(state, row.tree))
    flat = flatten_tree(getattr(state, row.tree))
    value = flat.pop(row.path)
    kfb.save(tmp_path / "old", state.replace(**{row.tree: nest_paths(flat)}))
    kept = kfb.restore(tmp_path / "old", state)
    assert flatten_tree(getattr(kept, row.tree))[row.path] is value


@pytest.mark.parametrize("row", table.REFUSED, ids=lambda row: row.name)
def test_any_other_variable_is_an_error_that_names_it_its_owner_and_the_line(row):
    model = row.build()
    with pytest.raises(StructureMismatchError) as caught:
        kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    message = str(caught.value)
    assert row.variable in message
    assert row.owner in message
    assert re.search(rf"variables\.py:\d+ {row.verb} while", message)


@pytest.mark.parametrize("make", [kfb.make_train_step, kfb.make_eval_step, kfb.make_predict_step])
def test_every_step_finds_it(make):
    model = table.build(layer=table.reading_global())
    data = X if make is kfb.make_predict_step else BATCH
    with pytest.raises(StructureMismatchError, match="variable 'global'"):
        make(model)(kfb.TrainState.from_keras(model), data)


@pytest.mark.parametrize(
    ("layer", "verb"), [(table.reading_global, "reads"), (table.assigning_global, "assigns")]
)
def test_apply_fn_finds_it_and_carries_what_it_is_given(layer, verb):
    state = kfb.TrainState.from_keras(table.build(layer=layer()))
    with pytest.raises(StructureMismatchError, match=rf"'global'.* {verb} while a call of apply_fn"):
        state.apply_fn({"params": state.params, "non_trainable": state.non_trainable}, X)
    state = kfb.TrainState.from_keras(table.build(layer=table.Using(table.count(), table.counted)))
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    _, after = state.apply_fn(variables, X, mutable=["non_trainable"])
    assert float(after["non_trainable"]["using"]["held"]["count"]) == 2.0


# --- the optimizer's variables


def test_a_loss_weighted_by_iterations_has_those_of_the_state():
    model = table.build(table.WeightedByIterations, optimizer=keras.optimizers.SGD(0.0))
    state, losses = trained(model)
    assert losses[0] == 0.0
    np.testing.assert_allclose(losses[2], 2 * losses[1], rtol=1e-6)
    _, losses = evaluated(model, state, 2)  # an eval step takes the optimizer's variables if they are read
    np.testing.assert_allclose(losses[0], losses[1], rtol=0)
    assert losses[0] > 0
    _, resumed = evaluated(
        model, state.replace(opt_state={**state.opt_state, "iteration": jnp.asarray(7)}), 1
    )
    np.testing.assert_allclose(resumed[0], 7 / 3 * losses[0], rtol=1e-6)


def test_a_schedule_that_a_step_reports_is_the_one_that_trains():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    model = table.build(table.ReportsRate, optimizer=keras.optimizers.SGD(schedule))
    state, step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    rates = []
    for _ in range(3):
        state, logs = step(state, BATCH)
        rates.append((float(logs["rate"]), int(logs["count"])))
    assert rates == [(0.5, 0), (0.25, 1), (0.125, 2)]


def test_steps_in_one_call_read_it_anew():
    model = table.build(table.WeightedByIterations)
    one, _ = trained(model, 3)
    state, step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, steps_per_call=3)
    state, _ = step(state, jax.tree.map(lambda leaf: np.stack([leaf] * 3), BATCH))
    np.testing.assert_allclose(
        state.params["dense"]["kernel"], one.params["dense"]["kernel"], rtol=1e-6, atol=1e-7
    )
    assert int(state.opt_state["iteration"]) == 3


def test_the_optimizer_of_another_model_is_refused():
    table.OTHER["model"] = table.build()
    model = table.build(layer=table.reading_other_optimizer())
    with pytest.raises(StructureMismatchError, match="iteration': got a variable of reading_other"):
        trained(model, 1)


# --- states of RNNs


def stateful():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(batch_shape=(8, 2, 2)), layers.GRU(3, stateful=True), layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


SEQUENCES = X.reshape(8, 2, 2), X[:, :1]


def test_states_of_rnns_are_carried_as_in_eager_calls_and_reset():
    model, eager = stateful(), stateful()
    start = kfb.TrainState.from_keras(model)
    state, step = start, kfb.make_train_step(model, donate=False)
    for _ in range(3):
        state, _ = step(state, SEQUENCES)
        eager(SEQUENCES[0])
    np.testing.assert_allclose(
        state.non_trainable["gru"]["rnn_state"], eager.layers[0].states[0].value, rtol=1e-5, atol=1e-6
    )
    reset = state.reset_states()
    assert not np.any(reset.non_trainable["gru"]["rnn_state"])
    assert reset.params is state.params
    outputs, after = kfb.make_predict_step(model, return_state=True)(reset, SEQUENCES[0])
    assert np.any(after.non_trainable["gru"]["rnn_state"])
    np.testing.assert_allclose(outputs, stateful()(SEQUENCES[0]), rtol=1e-5, atol=1e-6)


def test_an_abstract_state_takes_an_older_checkpoint_of_a_stateful_rnn(tmp_path):
    state = kfb.TrainState.from_keras(stateful())
    without = {name: leaf for name, leaf in state.non_trainable["gru"].items() if name != "rnn_state"}
    kfb.save(tmp_path / "old", state.replace(non_trainable={"gru": without}))
    back = kfb.restore(tmp_path / "old", kfb.TrainState.abstract(stateful))
    assert not np.any(back.non_trainable["gru"]["rnn_state"])


# --- evaluation and prediction that write


def test_evaluation_hands_on_what_evaluate_does():
    model, fitted = table.build(table.CountsEvaluations), table.build(table.CountsEvaluations)
    fitted.evaluate(*BATCH, batch_size=4, verbose=0)
    state, step = kfb.TrainState.from_keras(model), kfb.make_eval_step(model)
    for rows in (slice(0, 4), slice(4, 8)):
        state, _ = step(state, (BATCH[0][rows], BATCH[1][rows]))
    state.assign_to(model)
    for ours, theirs in zip(model.variables, fitted.variables, strict=True):
        np.testing.assert_array_equal(ours.value, theirs.value)
    assert float(fitted.seen.value) == 2.0


def test_a_model_that_draws_in_inference_predicts_with_its_state():
    model, theirs = table.build(layer=table.Sampling()), table.build(layer=table.Sampling())
    wanted = theirs.predict(X, batch_size=4, verbose=0)
    with pytest.raises(StructureMismatchError, match="return_state=True"):
        kfb.make_predict_step(model)(kfb.TrainState.from_keras(model), X)
    state, step = kfb.TrainState.from_keras(model), kfb.make_predict_step(model, return_state=True)
    outputs = []
    for rows in (slice(0, 4), slice(4, 8)):
        y, state = step(state, X[rows])
        outputs.append(y)
    np.testing.assert_array_equal(np.concatenate(outputs), wanted)
    state.assign_to(model)
    for ours, other in zip(model.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(ours.value, other.value)


# --- the scope around a step


def test_nothing_is_patched_after_a_trace():
    own = keras.StatelessScope.get_current_value, keras.StatelessScope.add_update
    trained(table.build(), 1)
    with pytest.raises(StructureMismatchError):
        trained(table.build(layer=table.reading_global()), 1)
    assert own == (keras.StatelessScope.get_current_value, keras.StatelessScope.add_update)


def test_a_variable_made_in_a_step_is_its_own():
    state, _ = trained(table.build(table.MeanInStep), 1)
    assert int(state.step) == 1


def test_a_swallowed_error_comes_nevertheless():
    model = table.build(layer=table.Swallowing())
    with pytest.raises(StructureMismatchError, match="variable 'global'"):
        trained(model, 1)


def test_an_assignment_in_a_gradient_that_nothing_carries_is_refused():
    model = table.build(table.AssignsInGradient, metrics=["mae"])
    with pytest.raises(StructureMismatchError, match="inside of a transformation"):
        trained(model, 1)


def test_a_compiled_step_has_no_more_equations():
    model = table.build()
    jaxpr = jax.make_jaxpr(kfb.make_train_step(model, jit=False))(kfb.TrainState.from_keras(model), BATCH)
    state = [[v.value for v in vs] for vs in table.lists(model)]
    own = jax.make_jaxpr(model.train_step)(tuple(state), BATCH)
    assert abs(len(jaxpr.eqns) - len(own.eqns)) <= 1  # the count of steps
