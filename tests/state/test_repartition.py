"""TrainState: metrics begin anew; slots when weights are frozen, thawed, or trained by another optimizer."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.capabilities import needs
from tests.support.cases import equal
from tests.support.models.graphs import two_layers
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())
SPECS = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), BATCH)


def test_reset_touches_metrics_alone(trained):
    _, state = trained
    reset = state.reset_metrics()
    assert float(state.metrics["loss"]["count"]) > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((reset.metrics, reset.eval_metrics)))
    assert equal(
        (reset.params, reset.opt_state, reset.non_trainable),
        (state.params, state.opt_state, state.non_trainable),
    )


class Best(keras.metrics.Metric):
    """A metric that doesn't start at zero."""

    def __init__(self, name="best"):
        super().__init__(name=name)
        self.best = self.add_variable((), initializer=lambda *_, **__: -np.inf, name="best")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.best.assign(keras.ops.maximum(self.best, keras.ops.max(y_pred)))

    def reset_state(self):
        self.best.assign(-np.inf)

    def result(self):
        return self.best.value


def test_reset_is_the_metric_s_own():
    model = two_layers()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=[Best()])
    state, logs = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    assert float(logs["best"]) > 0
    assert float(state.reset_metrics().metrics["best"]["best"]) == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [None, optax.adam(1e-2)], ids=["keras", "optax"])
def test_repartition_keeps_the_slots_that_survive(optimizer):
    model = contracts.SEQUENTIAL.build()
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    state, _ = kfb.make_train_step(model, optimizer=optimizer, donate=False)(state, BATCH)
    model.layers[0].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    frozen = state.repartition(model)
    assert "dense" not in frozen.params
    assert equal(frozen.non_trainable["dense"], state.params["dense"])
    before, after = (flatten_tree(s.opt_state) for s in (state, frozen))
    assert after.keys() == {path for path in before if "dense" not in path}
    assert all(np.array_equal(before[path], after[path]) for path in after)
    assert int(frozen.step) == 1
    trained, _ = kfb.make_train_step(model, optimizer=optimizer, donate=False)(frozen, BATCH)
    assert equal(trained.non_trainable["dense"], state.params["dense"])
    model.layers[0].trainable = True
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    back = trained.repartition(model)
    assert back.params.keys() == state.params.keys()
    slots = [leaf for path, leaf in flatten_tree(back.opt_state).items() if "dense" in path]
    assert len(slots) == 4
    assert not any(np.any(leaf) for leaf in slots)


def refined(model, optimizer, **compiled):
    """The recipe for fine-tuning: another partition, compiled again."""
    model.layers[0].trainable = not model.layers[0].trainable
    model.compile(optimizer, "sparse_categorical_crossentropy", **compiled)
    return model


def test_repartition_takes_the_learning_rate_just_compiled_and_keeps_the_slots():
    model = refined(two_layers(), keras.optimizers.Adam(1e-2))
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    kept = state.opt_state["momentums"]["dense_1"]
    state = state.repartition(refined(model, keras.optimizers.Adam(1e-5)))
    assert float(state.opt_state["learning_rate"]) == pytest.approx(1e-5)
    assert int(state.opt_state["iteration"]) == 1
    assert equal(state.opt_state["momentums"]["dense_1"], kept)


def test_repartition_starts_averages_with_the_weights():
    optimizer = lambda: keras.optimizers.SGD(1e-3, use_ema=True, ema_overwrite_frequency=2)  # noqa: E731
    model = refined(two_layers(), optimizer())
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    state = state.repartition(refined(model, optimizer()))
    before, train_step = np.array(state.params["dense"]["kernel"]), kfb.make_train_step(model)
    for _ in range(2):
        state, _ = train_step(state, BATCH)
    np.testing.assert_allclose(state.params["dense"]["kernel"], before, atol=1e-2)


def test_repartition_with_another_kind_of_optimizer_starts_its_slots():
    model = refined(two_layers(), keras.optimizers.Adam(1e-2))
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    state = state.repartition(refined(model, keras.optimizers.SGD(0.1, momentum=0.9)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state["momentums"]))


def test_repartition_takes_new_metrics_and_a_model_that_is_not_compiled():
    model = refined(two_layers(), "adam")
    state = kfb.TrainState.from_keras(model).repartition(refined(model, "adam", metrics=["accuracy"]))
    assert sorted(state.metrics) == ["accuracy", "loss"]
    kfb.make_train_step(model)(state, BATCH)
    plain = two_layers()
    state = kfb.TrainState.from_keras(plain, optimizer=keras.optimizers.Adam(0.5))
    plain.layers[0].trainable = False
    state = state.repartition(plain)
    assert sorted(state.opt_state["momentums"]) == ["dense_1"]
    assert float(state.opt_state["learning_rate"]) == 0.5


@needs("ScheduleFreeAdamW")
def test_repartition_starts_slots_with_the_weights_where_the_optimizer_does():
    model = refined(two_layers(), "adam")
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), BATCH)
    model.compile(keras.optimizers.ScheduleFreeAdamW(0.01), "sparse_categorical_crossentropy")
    state = state.repartition(model)
    assert equal(state.opt_state["momentums"], state.params)


def test_repartition_of_a_moved_uncompiled_model_keeps_rate_and_metrics():
    model, optimizer = two_layers(), keras.optimizers.Adam(0.01)
    parts = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    state = kfb.TrainState.from_keras(model, optimizer=optimizer, copy=False, **parts)
    state = state.replace(opt_state={**state.opt_state, "learning_rate": jnp.float32(0.5)})
    model.layers[0].trainable = False
    state = state.repartition(model).reset_metrics()
    assert float(state.opt_state["learning_rate"]) == 0.5
    step = kfb.make_train_step(model, optimizer=state.tx.optimizer, **parts)
    state, logs = step(state, BATCH)
    assert set(logs) == {"loss", "accuracy"}


def test_repartition_asks_for_a_batch_where_new_metrics_need_one():
    model = refined(two_layers(), "adam")
    state = kfb.TrainState.from_keras(model)
    metric = keras.metrics.F1Score()
    refined(model, "adam", metrics=[metric])
    one_hot = BATCH[0], np.eye(3, dtype="float32")[BATCH[1]]
    model.compile("adam", "categorical_crossentropy", metrics=[metric])
    with pytest.raises(kfb.NotBuiltError, match="batch="):
        state.repartition(model)
    state = state.repartition(model, batch=one_hot)
    kfb.make_train_step(model)(state, one_hot)
