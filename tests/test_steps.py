"""Steps: pure, compiled once, exact under optax too; and what they say about a wrong batch or state."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import _paths
from tests import contracts

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


def test_neither_reads_nor_writes_the_model(model):
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, donate=False)
    before = [w.copy() for w in model.get_weights()]
    first, _ = train_step(state, BATCH)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    model.set_weights([w + 1 for w in before])
    fresh = kfb.make_train_step(model, donate=False)  # traced while the model holds other values
    second, _ = fresh(state, BATCH)
    assert equal(first.params, second.params)


def test_two_states_run_side_by_side(model):
    train_step = kfb.make_train_step(model)
    states = [kfb.TrainState.from_keras(contracts.SEQUENTIAL.build()) for _ in range(2)]
    alone = kfb.TrainState.from_keras(contracts.SEQUENTIAL.build())
    for batch in contracts.SEQUENTIAL.batches(3):
        alone, _ = train_step(alone, batch)
        states = [train_step(state, batch)[0] for state in states]
    assert equal(states[0].params, states[1].params)
    assert equal(states[0].params, alone.params)


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
    for path, leaf in _paths.flatten(state.params).items():
        np.testing.assert_allclose(leaf, _paths.flatten(params)[path], rtol=1e-5, atol=1e-6)


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


# --- wrong batches and states


def step_on(batch, **options):
    model = contracts.SEQUENTIAL.build()
    return kfb.make_train_step(model, **options)(kfb.TrainState.from_keras(model), batch)


X, Y = BATCH
WRONG = {
    "too many parts": ((X, Y, Y, Y), "4 parts"),
    "no targets": ((X,), "targets"),
    "features": ((X[:, :4], Y), r"batch/x: got shape \(8, 4\), expected shape \(None, 6\)"),
    "two inputs": (({"a": X, "b": X}, Y), "expected 1 inputs"),
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


def test_a_state_of_another_optimizer_is_explained(model):
    state = kfb.TrainState.from_keras(model)
    with pytest.raises(kfb.StructureMismatchError, match="another optimizer"):
        kfb.make_train_step(model, optimizer=optax.adam(1e-3))(state, BATCH)
