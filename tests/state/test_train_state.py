"""TrainState: from_keras, ownership and copies; and every misuse by name."""

import copy
import gc
import itertools
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax.training import train_state
from keras import layers

import keras_flax_bridge as kfb
from tests.support.flax_steps import flax_train_step
from tests.support.models.graphs import two_layers
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())
SPECS = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), BATCH)


# --- from_keras


def test_is_a_flax_train_state(model):
    state = kfb.TrainState.from_keras(model)
    assert isinstance(state, train_state.TrainState)
    assert isinstance(state.tx, optax.GradientTransformation)
    assert state.step.dtype == jnp.int32
    assert set(state.opt_state) == {"iteration", "learning_rate", "momentums", "velocities"}
    assert jax.tree.structure(state.opt_state["momentums"]) == jax.tree.structure(state.params)
    assert set(state.metrics) == {"loss", "accuracy"}


@pytest.mark.parametrize("batch", [BATCH, SPECS], ids=["arrays", "specs"])
def test_builds_an_unbuilt_model_from_a_batch(batch):
    model = two_layers(built=False)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    state = kfb.TrainState.from_keras(model, batch=batch)
    assert state.params["dense"]["kernel"].shape == (6, 4)
    assert model.optimizer.built


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), keras.optimizers.Adam(), "adam"])
def test_an_uncompiled_model_takes_an_optimizer(optimizer):
    model = two_layers()
    state = kfb.TrainState.from_keras(model, optimizer=optimizer, metrics=["accuracy"])
    assert not model.compiled
    assert "accuracy" in state.metrics
    assert int(state.step) == 0


def test_step_counts_what_the_optimizer_has_seen(model):
    for batch in contracts.SEQUENTIAL.batches(3):
        model.train_on_batch(*batch)
    assert int(kfb.TrainState.from_keras(model).step) == 3


def test_two_states_of_one_model_are_one_type_to_jit(model):
    one, two = kfb.TrainState.from_keras(model), kfb.TrainState.from_keras(model)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert hash(one.tx) == hash(two.tx)


# --- ownership


def test_assign_to_keeps_the_model_from_donation(trained):
    model, state = trained
    state.assign_to(model)
    kfb.make_train_step(model)(state, BATCH)
    model.predict(BATCH[0], verbose=0)


def buffers():
    gc.collect()
    return {id(array) for array in jax.live_arrays() if array.nbytes == 1_000_000}


@pytest.mark.slow
def test_moving_holds_the_weights_once():
    before = buffers()
    model = keras.Sequential([keras.Input((500,)), layers.Dense(500, use_bias=False)])
    model.compile("sgd", "mse")
    state = kfb.TrainState.from_keras(model, copy=False)
    assert len(buffers() - before) == 1
    train_step = kfb.make_train_step(model)
    for _ in range(2):
        state, _ = train_step(state, (np.ones((2, 500), "float32"), np.ones((2, 500), "float32")))
    assert len(buffers() - before) == 1
    state.assign_to(model, copy=False)
    assert len(buffers() - before) == 1


TOUCHES = {
    "call": lambda model: model(BATCH[0]),
    "predict": lambda model: model.predict(BATCH[0], verbose=0),
    "fit": lambda model: model.fit(*BATCH, verbose=0),
    "get_weights": lambda model: model.get_weights(),
    "value": lambda model: model.weights[0].value,
    "take again": kfb.TrainState.from_keras,
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_touching_a_moved_model_names_the_variable(model, touch):
    model.train_on_batch(*BATCH)
    state = kfb.TrainState.from_keras(model, copy=False)
    with pytest.raises(kfb.OwnershipError, match=r"dense/kernel.*assign_to"):
        touch(model)
    state.assign_to(model)
    touch(model)


def test_a_moved_model_still_makes_steps_and_saves(model, tmp_path):
    state = kfb.TrainState.from_keras(model, copy=False)
    state, _ = kfb.make_train_step(model)(state, BATCH)
    kfb.save(tmp_path / "moved", state)
    assert float(kfb.load_model(tmp_path / "moved").optimizer.learning_rate) == pytest.approx(1e-3)


@pytest.mark.slow
def test_a_buffer_shared_by_two_variables_can_be_donated(model):
    kernel = model.get_layer("head").kernel
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.optimizer._momentums[4].assign(kernel)
    state = kfb.TrainState.from_keras(model, copy=False)
    kfb.make_train_step(model)(state, BATCH)


def test_a_donated_state_is_named(trained):
    model, state = trained
    kfb.make_train_step(model)(state, BATCH)
    with pytest.raises(kfb.OwnershipError, match=r"state/.*donated"):
        kfb.make_train_step(model)(state, BATCH)
    with pytest.raises(kfb.OwnershipError, match="donated"):
        state.assign_to(model)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled, monkeypatch):
    monkeypatch.setattr(gc, "isenabled", lambda: enabled)
    calls = []
    monkeypatch.setattr(gc, "disable", lambda: calls.append("disable"))
    monkeypatch.setattr(gc, "enable", lambda: calls.append("enable"))
    with pytest.raises(kfb.BridgeError):
        kfb.TrainState.from_keras(keras.Sequential([layers.Dense(2)]))
    assert calls == ["disable", *["enable"] * enabled]


# --- copies, aliases, half-done work


def test_a_state_that_could_not_be_made_leaves_the_model_its_weights(model):
    broken = optax.GradientTransformation(lambda params: params["nothing"], lambda *a: a)
    with pytest.raises(KeyError):
        kfb.TrainState.from_keras(model, optimizer=broken, copy=False)
    model.predict(BATCH[0], verbose=0)


def test_a_transformation_that_keeps_the_weights_can_be_donated():
    model, tx = two_layers(), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1))
    state = kfb.TrainState.from_keras(model, optimizer=tx)
    step = kfb.make_train_step(model, optimizer=tx, loss="sparse_categorical_crossentropy")
    state, _ = step(state, BATCH)
    assert int(state.step) == 1


@pytest.mark.slow
def test_a_deep_copy_is_a_state_of_its_own(trained):
    model, state = trained
    twin = copy.deepcopy(state)
    assert jax.tree.structure(twin) == jax.tree.structure(state)
    kfb.make_train_step(model)(state, BATCH)
    kfb.make_train_step(model)(twin, BATCH)


def test_a_float16_model_gets_its_loss_scaled_as_compile_would():
    layer = layers.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((6,)), layer], name="half")
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    state = kfb.TrainState.from_keras(model, optimizer=keras.optimizers.SGD(0.1), loss="mse")
    assert "dynamic_scale" in state.opt_state
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


# --- misuse


def compiled(optimizer="sgd"):
    model = two_layers()
    model.compile(optimizer, "mse")
    return model


def stale_optimizer():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    return model


def lazy_metric(metric=None):
    model = two_layers()
    model.compile("sgd", "mse", metrics=[metric or keras.metrics.F1Score()])
    return model


state_of = kfb.TrainState.from_keras


def apply_fn():
    return state_of(compiled()).apply_fn


MISUSE = {
    "unbuilt": (lambda: kfb.TrainState.from_keras(unbuilt()), kfb.NotBuiltError, "batch="),
    "uncompiled": (lambda: kfb.TrainState.from_keras(two_layers()), kfb.NotBuiltError, "compile"),
    "no optimizer": (lambda: kfb.make_train_step(two_layers()), kfb.NotBuiltError, "optimizer"),
    "stale optimizer": (
        lambda: kfb.TrainState.from_keras(stale_optimizer()),
        kfb.StructureMismatchError,
        "dense/kernel",
    ),
    "lazy metric with a variable": (
        lambda: kfb.TrainState.from_keras(lazy_metric(keras.metrics.R2Score())),
        kfb.NotBuiltError,
        "r2_score",
    ),
    "model of before": (
        lambda: kfb.TrainState.abstract(itertools.repeat(compiled()).__next__),
        kfb.StructureMismatchError,
        "from_keras",
    ),
    "no model": (
        lambda: kfb.TrainState.from_keras("model.keras"),
        kfb.StructureMismatchError,
        "str|keras.Model",
    ),
    "abstract of none": (
        lambda: kfb.TrainState.abstract(lambda: None),
        kfb.StructureMismatchError,
        "NoneType",
    ),
    "assign to none": (lambda: state_of(compiled()).assign_to(None), kfb.StructureMismatchError, "NoneType"),
    "unknown optimizer": (
        lambda: kfb.TrainState.from_keras(two_layers(), optimizer="adamm"),
        kfb.StructureMismatchError,
        "adamm",
    ),
    "unknown loss": (
        lambda: kfb.TrainState.from_keras(two_layers(), optimizer="adam", loss="msee", batch=BATCH),
        kfb.StructureMismatchError,
        "msee",
    ),
    "wrong batch": (
        lambda: kfb.TrainState.from_keras(unbuilt(), batch=(BATCH[0], BATCH[0], BATCH[0], BATCH[0])),
        kfb.StructureMismatchError,
        "4 parts",
    ),
    "batch that Keras can't take": (
        lambda: kfb.TrainState.from_keras(unbuilt(), batch=(BATCH[0], np.ones((8, 7), "float32"))),
        kfb.StructureMismatchError,
        r"batch/1  float32\[8,7\]",
    ),
    "pickle": (lambda: pickle.dumps(state_of(compiled())), kfb.UnsupportedOptimizerError, r"kfb\.save"),
    "extra arguments": (
        lambda: flax_train_step(state_of(two_layers(), optimizer=optax.lbfgs()), BATCH),
        kfb.UnsupportedOptimizerError,
        "value",
    ),
    "incomplete gradients": (
        lambda: state_of(two_layers(), optimizer=optax.sgd(0.1)).apply_gradients(grads={"dense": {}}),
        kfb.StructureMismatchError,
        "dense_1/kernel",
    ),
    "no variables": (
        lambda: apply_fn()(None, BATCH[0]),
        kfb.StructureMismatchError,
        "'params': state.params",
    ),
    "a state as variables": (
        lambda: apply_fn()(state_of(compiled()), BATCH[0]),
        kfb.StructureMismatchError,
        "TrainState",
    ),
    "Flax's word": (
        lambda: apply_fn()({}, BATCH[0], train=True),
        kfb.StructureMismatchError,
        "training=True",
    ),
    "a number as a key": (
        lambda: apply_fn()({"params": state_of(compiled()).params}, BATCH[0], rngs=3),
        kfb.StructureMismatchError,
        "rngs",
    ),
    "lazy metric": (lambda: kfb.TrainState.from_keras(lazy_metric()), kfb.NotBuiltError, "f1_score"),
    "abstract": (
        lambda: kfb.TrainState.abstract(compiled).assign_to(compiled()),
        kfb.NotBuiltError,
        "Restore",
    ),
}


def unbuilt():
    model = two_layers(built=False)
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(("act", "kind", "words"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_explained(act, kind, words):
    with pytest.raises(kind, match=words) as error:
        act()
    assert isinstance(error.value, ValueError)
