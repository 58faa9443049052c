"""Steps: pure, compiled once, exact under optax too; and what they say about a wrong batch or state."""

import contextlib
import os
import signal
import threading

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def bare():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), layers.Dense(4, "relu"), layers.Dense(3, "softmax")])


def test_compiles_once(model):
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    state, _ = train_step(state, BATCH)
    with jax.log_compiles(False), jax.checking_leaks():
        from jax._src import test_util  # counts lowerings; nothing public does

        with test_util.count_jit_compilation_cache_miss() as misses:
            for _ in range(3):
                state, _ = train_step(state, BATCH)
    assert misses() == 0


def test_two_states_run_side_by_side(model):
    train_step = kfb.make_train_step(model)
    states = [kfb.TrainState.from_keras(contracts.SEQUENTIAL.build()) for _ in range(2)]
    alone = kfb.TrainState.from_keras(contracts.SEQUENTIAL.build())
    for batch in contracts.SEQUENTIAL.batches(3):
        alone, _ = train_step(alone, batch)
        states = [train_step(state, batch)[0] for state in states]
    assert equal(states[0].params, states[1].params)
    assert equal(states[0].params, alone.params)


@pytest.mark.slow
def test_pure_step_runs_under_vmap_scan_and_eval_shape(model, leaks):
    step = kfb.make_train_step(model, jit=False)
    state = kfb.TrainState.from_keras(model)
    shapes = jax.eval_shape(step, state, BATCH)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    ensemble, logs = jax.jit(jax.vmap(step, in_axes=(0, None)))(stack, BATCH)
    one, wanted = jax.jit(step)(state, BATCH)
    assert logs["loss"].shape == (2,)
    np.testing.assert_allclose(logs["loss"], wanted["loss"], rtol=1e-6)
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(one)
    batches = jax.tree.map(lambda leaf: np.stack([leaf] * 3), BATCH)
    last, _ = jax.jit(lambda s, b: jax.lax.scan(step, s, b))(state, batches)
    assert int(last.step) == 3
    assert ensemble.params["head"]["kernel"].shape == (2, 5, 3)


def test_optax_trains_as_plain_flax_code_would():
    tx = optax.adamw(1e-2)
    model = bare()
    state = kfb.TrainState.from_keras(model, optimizer=tx)
    train_step = kfb.make_train_step(model, optimizer=tx, loss="sparse_categorical_crossentropy")

    def loss_fn(params, x, y):
        hidden = jax.nn.relu(x @ params["dense"]["kernel"] + params["dense"]["bias"])
        out = jax.nn.softmax(hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"])
        return jnp.mean(keras.losses.sparse_categorical_crossentropy(y, out))

    @jax.jit
    def by_hand(params, slots, x, y):
        updates, slots = tx.update(jax.grad(loss_fn)(params, x, y), slots, params)
        return optax.apply_updates(params, updates), slots

    params, slots = state.params, tx.init(state.params)
    params = jax.tree.map(jnp.copy, params)  # the step takes over the state's own
    for batch in contracts.SEQUENTIAL.batches(10):
        params, slots = by_hand(params, slots, *batch)
        state, _ = train_step(state, batch)
    for path, leaf in flatten_tree(state.params).items():
        np.testing.assert_allclose(leaf, flatten_tree(params)[path], rtol=1e-5, atol=1e-6)


def test_given_parts_leave_the_compiled_model_alone(model):
    before = model.optimizer, model.loss
    parts = {"optimizer": optax.sgd(0.1), "metrics": ["sparse_top_k_categorical_accuracy"]}
    state = kfb.TrainState.from_keras(model, **parts)
    state, logs = kfb.make_train_step(model, **parts)(state, BATCH)
    assert set(logs) == {"loss", "sparse_top_k_categorical_accuracy"}
    assert (model.optimizer, model.loss) == before
    assert "accuracy" in model.evaluate(*BATCH, verbose=0, return_dict=True)


def test_eval_starts_again_after_a_reset(trained):
    model, state = trained
    eval_step = kfb.make_eval_step(model)
    state, first = eval_step(state.reset_metrics(), BATCH)
    state, second = eval_step(state.reset_metrics(), BATCH)
    assert equal(first, second)
    assert float(state.metrics["loss"]["count"]) == 0


def test_eval_of_an_uncompiled_model():
    model = bare()
    state = kfb.TrainState.from_keras(model, optimizer=optax.identity(), metrics=["accuracy"])
    eval_step = kfb.make_eval_step(model, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    _, logs = eval_step(state, BATCH)
    assert set(logs) == {"loss", "accuracy"}
    assert not model.compiled


class OneArgument(keras.Model):
    """A model whose call takes no `training`."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x):
        return self.dense(x)


def test_training_is_passed_only_where_it_is_taken():
    model = OneArgument()
    model(np.ones((1, 6)))
    model.compile("sgd", "mse")
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), (BATCH[0], BATCH[1]))
    kfb.make_predict_step(model)(state, BATCH[0])
    state.apply_fn({"params": state.params}, BATCH[0], training=True)


def test_bare_x_trains_on_added_losses():
    x = keras.Input((6,))
    model = keras.Model(x, layers.ActivityRegularization(l2=0.1)(layers.Dense(2)(x)))
    model.compile("sgd")
    state = kfb.TrainState.from_keras(model)
    state, logs = kfb.make_train_step(model)(state, BATCH[0])
    assert float(logs["loss"]) > 0


class Labels(keras.Model):
    """A model with its own `predict_step`."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def predict_step(self, state, data):
        outputs, state = super().predict_step(state, data)
        return keras.ops.argmax(outputs, -1), state


def test_an_own_predict_step_is_kept():
    model = Labels()
    model(X)
    labels = kfb.make_predict_step(model)(kfb.TrainState.from_keras(model, optimizer="sgd"), X)
    assert np.array_equal(labels, model.predict(X, verbose=0))


@pytest.mark.slow
def test_ctrl_c_leaves_a_state_that_can_be_assigned():
    """A real SIGINT: it nearly always comes while the compiled step runs, after it took the buffers over."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), *(layers.Dense(256) for _ in range(3)), layers.Dense(3)])
    model.compile("adam", "mse")
    train_step, batch = kfb.make_train_step(model), (X, np.ones((8, 3), "float32"))
    state, _ = train_step(kfb.TrainState.from_keras(model), batch)
    for _ in range(5):
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                state, _ = train_step(state, batch)
        timer.join()
        state.assign_to(model)
        assert int(state.step) == int(model.optimizer.iterations.value)
    signal.signal(signal.SIGINT, before)


def test_a_model_compiled_again_asks_for_a_new_step(model):
    train_step, state = kfb.make_train_step(model, donate=False), kfb.TrainState.from_keras(model)
    train_step(state, BATCH)
    model.compile("adam", "mse")
    with pytest.raises(kfb.StructureMismatchError, match="Make the step again"):
        train_step(state, BATCH)


@pytest.mark.slow
def test_class_weights_are_sample_weights(model):
    row, class_weight = contracts.SEQUENTIAL, {0: 1.0, 1: 3.0, 2: 0.5}
    fitted = contracts.SEQUENTIAL.build()
    fitted.fit(**{**row.data, "sample_weight": None}, shuffle=False, class_weight=class_weight)
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    for x, y in row.batches():
        state, _ = train_step(state, (x, y, np.vectorize(class_weight.get)(y).astype("float32")))
    wanted = kfb.TrainState.from_keras(fitted)
    assert equal((state.params, state.opt_state), (wanted.params, wanted.opt_state))


# --- wrong batches and states


def step_on(batch, **options):
    model = contracts.SEQUENTIAL.build()
    return kfb.make_train_step(model, **options)(kfb.TrainState.from_keras(model), batch)


def step_of(model):
    return kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)


X, Y = BATCH
WRONG = {
    "too many parts": ((X, Y, Y, Y), "4 parts"),
    "no targets": ((X,), "targets"),
    "features": ((X[:, :4], Y), r"batch/x: got shape \(8, 4\), expected shape \(None, 6\)"),
    "two inputs": (({"a": X, "b": X}, Y), "expected 1 inputs"),
    "two targets": ((X, {"a": Y, "b": Y}), "batch/y"),
    "weights in a dict": ((X, Y, {"a": Y}), "batch/2/a  int32"),
    "no rows": ((X[:0], Y[:0]), "at least one row"),
    "words": ((np.array(["a"] * 8), Y), "batch/x: got an array of <U1"),
    "lists": ((X.tolist(), Y), "batch/x/0/0: got a Python float"),
    "sizes": ((X, Y[:7]), "x: 8, y: 7"),
}


@pytest.mark.parametrize(("batch", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_batch_is_explained(batch, words):
    with pytest.raises(kfb.StructureMismatchError, match=words):
        step_on(batch)


def test_a_batch_without_its_leading_axis_is_explained():
    with pytest.raises(kfb.StructureMismatchError, match=r"batch/0.*leading axis of size 4"):
        step_on(BATCH, steps_per_call=4)


def test_a_keras_variable_in_a_batch_is_named():
    with pytest.raises(kfb.OwnershipError, match=r"batch/0.*keras\.Variable"):
        step_on((keras.Variable(X, name="x"), Y))


def test_a_keras_variable_in_a_state_is_named(model):
    state = kfb.TrainState.from_keras(model)
    params = {**state.params, "head": {"kernel": model.weights[-2], "bias": model.weights[-1]}}
    with pytest.raises(kfb.OwnershipError, match="state/params/head/"):
        kfb.make_train_step(model)(state.replace(params=params), BATCH)


def test_a_state_of_another_model_lists_all_its_leaves(model):
    state = kfb.TrainState.from_keras(bare(), optimizer="adam")
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.make_train_step(model)(state, BATCH)
    assert "params/dense/kernel" not in error.value.missing
    assert set(error.value.missing) == {
        "batch_normalization/gamma",
        "batch_normalization/beta",
        "head/kernel",
        "head/bias",
    }
    assert set(error.value.unexpected) == {"dense_1/kernel", "dense_1/bias"}
    assert set(error.value.mismatched) == {"dense/kernel", "dense/bias"}


def test_what_a_prediction_can_not_use_is_named(model):
    predict, state = kfb.make_predict_step(model), kfb.TrainState.from_keras(model)
    with pytest.raises(kfb.OwnershipError, match=r"^x: got a keras\.Variable"):
        predict(state, keras.Variable(X, name="x"))
    with pytest.raises(kfb.StructureMismatchError, match=r"batch/x: got an array of <U1"):
        predict(state, np.array(["a"] * 8))


def test_what_keras_refuses_is_said_with_the_batch(model):
    wrong = X, np.ones((8, 5, 2), "float32")
    with pytest.raises(kfb.StructureMismatchError, match=r"batch/1  float32\[8,5,2\]"):
        step_on(wrong)  # metrics are built from it
    train_step, (state, _) = kfb.make_train_step(model), step_of(model)
    with pytest.raises(ValueError, match="must have the same shape") as error:
        train_step(state, wrong)
    assert "batch/1  float32[8,5,2]" in "".join(error.value.__notes__)


@pytest.mark.parametrize("state", [None, {}, 3], ids=str)
def test_what_is_no_state_is_explained(model, state):
    with pytest.raises(kfb.StructureMismatchError, match="from_keras"):
        kfb.make_train_step(model)(state, BATCH)


def test_an_abstract_state_is_explained(model):
    state = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    with pytest.raises(kfb.NotBuiltError, match="abstract leaf"):
        kfb.make_train_step(model)(state, BATCH)


def test_a_donated_state_can_be_called_by_nobody(trained):
    model, state = trained
    kfb.make_train_step(model)(state, BATCH)
    with pytest.raises(kfb.OwnershipError, match="donated"):
        state.apply_fn({"params": state.params, "non_trainable": state.non_trainable}, X)
    with pytest.raises(kfb.OwnershipError, match="donated"):
        state.apply_gradients(grads=state.params)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_a_wrong_number_of_steps_is_explained(model, count):
    with pytest.raises(kfb.StructureMismatchError, match="steps_per_call"):
        kfb.make_train_step(model, steps_per_call=count)


def test_a_state_of_another_optimizer_is_explained(model):
    state = kfb.TrainState.from_keras(model)
    with pytest.raises(kfb.StructureMismatchError, match="a different optimizer"):
        kfb.make_train_step(model, optimizer=optax.adam(1e-3))(state, BATCH)
