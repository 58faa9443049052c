"""Lists of callbacks: only hooks that a callback has are called, and files are written by one process."""

import jax
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.training import hooks as module
from keras_flax_bridge.training.hooks import Hooks, around, muted

X = np.ones((8, 2), "float32")


class Ends(keras.callbacks.Callback):
    """Has one hook of batches, under its older name."""

    seen = ()

    def on_batch_end(self, batch, logs=None):
        self.seen = (*self.seen, (batch, type(logs["loss"])))


class Answers(keras.callbacks.Callback):
    """Answers for its hooks itself."""

    def __getattribute__(self, name):
        return object.__getattribute__(self, name)


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_a_hook_that_no_callback_has_costs_nothing():
    hooks = Hooks([keras.callbacks.EarlyStopping(), keras.callbacks.CSVLogger("unused")], add_history=True)
    assert hooks.on_train_batch_begin is hooks.on_train_batch_end is module._nothing


def test_an_older_name_of_a_hook_counts(model):
    ends = Ends()
    kfb.fit(model, X, X[:, :1], batch_size=4, verbose=0, callbacks=[ends])
    assert ends.seen == ((0, float), (1, float))


def test_who_answers_for_its_attributes_is_always_asked():
    assert Hooks([Answers()]).on_test_batch_begin is not module._nothing


def test_the_progress_bar_shows_the_last_logs(model, capsys):
    history = kfb.fit(model, X, X[:, :1], batch_size=1, verbose=1)
    shown = capsys.readouterr().out
    assert f"loss: {history.history['loss'][0]:.4f}" in shown
    assert "8/8" in shown


def test_of_several_processes_the_first_writes_and_prints(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda *args: 1)
    ends, file = Ends(), tmp_path / "m.weights.h5"
    writers = [keras.callbacks.ModelCheckpoint(file, save_weights_only=True)]
    writers += [keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    kfb.fit(model, X, X[:, :1], batch_size=4, verbose=1, callbacks=[*writers, ends])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert len(ends.seen) == 2


def test_a_muted_list_calls_no_hook_of_a_batch_that_began_meanwhile():
    told = []

    class Tells(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            told.append(("begin", batch))

        def on_train_batch_end(self, batch, logs=None):
            told.append(("end", batch))

    hooks, is_on = Hooks([Tells()]), [True]
    muted(hooks, lambda: is_on[0])
    around(hooks, "on_train_batch_end", None, lambda batch, logs=None: told.append(("after", batch)))
    hooks.on_train_batch_begin(0)
    is_on[0] = False
    hooks.on_train_batch_end(0)
    hooks.on_train_batch_begin(1)
    hooks.on_train_batch_end(1)
    assert told == [("after", 0), ("begin", 1), ("end", 1), ("after", 1)]
