"""Logs: nested ones have the names that `fit` gives them."""

import keras
import numpy as np
import pytest
from keras.src.utils.python_utils import pythonify_logs

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.logs import flat_logs

LOGS = {
    "flat": {"loss": 1.0, "acc": 2.0},
    "nested": {"loss": 1.0, "compile_metrics": {"mae": 2.0, "b": 3.0}},
    "deep": {"a": {"z": {"y": 1.0}, "x": 2.0}},
    "one name twice": {"loss": 1.0, "metrics": {"loss": 2.0}, "a": {"loss": 3.0}},
    "empty": {"a": {}},
}


@pytest.mark.parametrize("logs", LOGS.values(), ids=LOGS)
def test_names_and_order_are_those_of_keras(logs):
    assert list(flat_logs(logs).items()) == list(pythonify_logs(logs).items())


class Nested(keras.Model):
    """As in Keras's guide of an own train_step: the metrics of `compile` in a dict."""

    def nest(self, logs):
        return {"loss": logs.pop("loss"), "compile_metrics": logs}

    def train_step(self, state, data):
        logs, state = super().train_step(state, data)
        return self.nest(logs), state

    def test_step(self, state, data):
        logs, state = super().test_step(state, data)
        return self.nest(logs), state


def build():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    model = Nested(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def test_nested_logs_of_a_step_are_those_of_fit(tmp_path):
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 1), "float32")
    wanted = build().fit(x, y, validation_data=(x, y), verbose=0).history
    model = build()
    with kfb.CheckpointManager(tmp_path, keep_best="val_mae") as manager:
        _, history = kfb.train(
            kfb.TrainState.from_keras(model),
            kfb.make_train_step(model),
            [(x, y)],
            epochs=1,
            eval_step=kfb.make_eval_step(model),
            eval_data=[(x, y)],
            manager=manager,
            verbose=0,
        )
        assert manager.best_step == 1
    if "val_mae" not in wanted:  # Keras 3.12 puts the value of nested validation logs under the training name
        wanted = {**wanted, "mae": history.history["mae"], "val_mae": wanted["mae"]}
    assert history.history == wanted
