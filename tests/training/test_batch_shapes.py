"""Further batch shapes: each is logged when the step is compiled for it, and the third with what varies."""

import logging

import jax
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "keras_flax_bridge")
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "keras_flax_bridge"]


@pytest.fixture
def sequence_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3), name="words")
    model = keras.Model({"words": inputs}, layers.Dense(1)(layers.GlobalAveragePooling1D()(inputs)))
    model.compile("sgd", "mse")
    return model


def batch(size, length, dtype="float32"):
    return {"words": np.ones((size, length, 3), dtype)}, np.ones((size, 1), "float32")


def test_a_shape_is_logged_once(logged, sequence_model):
    state, step = kfb.TrainState.from_keras(sequence_model), kfb.make_train_step(sequence_model)
    for size in (4, 4, 2, 4, 2):
        state, _ = step(state, batch(size, 5))
    [(level, text)] = logged()
    assert level == "INFO"
    assert text.startswith("train_step is compiled again, for batch shape 2:")
    assert "batch/0/words  float32[2, 5, 3]" in text


def test_the_third_shape_is_a_warning_that_names_the_axis(logged, sequence_model):
    state, step = kfb.TrainState.from_keras(sequence_model), kfb.make_eval_step(sequence_model)
    for length in (5, 6, 9, 5, 11):
        step(state, batch(4, length))
    levels, texts = zip(*logged(), strict=True)
    assert levels == ("INFO", "WARNING", "INFO")
    assert "batch/0/words axis 1: sizes 5, 6, 9" in texts[1]
    assert "axis 0" not in texts[1]
    assert "drop_remainder" in texts[1]


def test_what_else_varies_is_named(logged, sequence_model):
    state, step = kfb.TrainState.from_keras(sequence_model), kfb.make_eval_step(sequence_model)
    x, y = batch(4, 5)
    for one in ((x, y), (x, y, y[:, 0]), batch(4, 5, "int32")):
        step(state, one)
    text = logged()[-1][1]
    assert "batch/0/words dtype: float32, int32" in text
    assert "batch/2 is in some batches only" in text


def test_another_state_or_a_wrong_batch_is_not_another_shape(logged, sequence_model):
    state, step = kfb.TrainState.from_keras(sequence_model), kfb.make_eval_step(sequence_model)
    with pytest.raises(kfb.StructureMismatchError):
        step(state, ({"words": np.ones((4, 5, 2), "float32")}, np.ones((4, 1), "float32")))
    step(state, batch(4, 5))
    zeros = jax.tree.map(lambda leaf: 0.0, state.eval_metrics)  # weakly typed: traced again
    step(state.replace(eval_metrics=zeros), batch(4, 5))
    pure = kfb.make_eval_step(sequence_model, jit=False)
    for size in (1, 2, 3):
        pure(state, batch(size, 5))
    assert logged() == []


def test_several_steps_in_a_call_and_predictions_are_logged_too(logged, sequence_model):
    state, predict = kfb.TrainState.from_keras(sequence_model), kfb.make_predict_step(sequence_model)
    step = kfb.make_train_step(sequence_model, steps_per_call=2)
    for size in (4, 3):
        predict(state, batch(size, 5)[0])
        state, _ = step(state, jax.tree.map(lambda leaf: np.stack([leaf] * 2), batch(size, 5)))
    (_, first), (_, second) = logged()
    assert first.startswith("predict_step is compiled again")
    assert "[3, 5, 3]" in first
    assert second.startswith("train_step is compiled again")
    assert "[2, 3, 5, 3]" in second
