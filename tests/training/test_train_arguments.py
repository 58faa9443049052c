"""Arguments of kfb.train: evaluation, class weights, callbacks that need `fit`, nested logs."""

import jax
import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_flax_bridge as kfb
from tests.support.cases import differing
from tests.tables import contracts
from tests.tables.callbacks import X, Y, small
from tests.training.test_loop import BATCHES, DATA, ROW, parts


def test_evaluation_needs_a_step_and_data():
    model, state, step = parts()
    for given in ({"eval_step": kfb.make_eval_step(model)}, {"eval_data": BATCHES}):
        with pytest.raises(kfb.ArgumentError, match=r"eval_step= and eval_data="):
            kfb.train(state, step, BATCHES, epochs=1, **given)


def test_evaluation_without_batches_is_explained():
    model, state, step = parts()
    exhausted = {"eval_step": kfb.make_eval_step(model), "eval_data": iter(BATCHES[:2])}
    with pytest.raises(kfb.StructureMismatchError, match="eval_data: got no batches"):
        kfb.train(state, step, BATCHES, epochs=2, verbose=0, **exhausted)


class Sampling(layers.Layer):
    """Draws in inference, too."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed_generator)


def drawing():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Sampling(), layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.mark.slow
def test_evaluation_hands_on_what_validation_hands_on():
    fitted, model = drawing(), drawing()
    held_out = {"validation_data": (ROW.x[-16:], ROW.y[-16:]), "validation_batch_size": contracts.SIZE}
    wanted = fitted.fit(**DATA, shuffle=False, epochs=3, **held_out)
    size = contracts.SIZE
    evaluation = [(ROW.x[-16:][i : i + size], ROW.y[-16:][i : i + size]) for i in range(0, 16, size)]
    state, history = kfb.train(
        kfb.TrainState.from_keras(model),
        kfb.make_train_step(model),
        BATCHES,
        epochs=3,
        eval_step=kfb.make_eval_step(model),
        eval_data=evaluation,
        verbose=0,
    )
    assert history.history == wanted.history
    expected = kfb.TrainState.from_keras(fitted)
    assert differing(state.non_trainable, expected.non_trainable) == []


@pytest.mark.slow
def test_nested_logs_are_flat(tmp_path):
    _, state, _ = parts()

    def own_step(state, batch):
        return state.replace(step=state.step + 1), {"loss": 2.0, "parts": {"a": 1.0, "b": {"c": 0.5}}}

    with kfb.CheckpointManager(tmp_path, keep_best=("c", "min")) as manager:
        _, history = kfb.train(state, own_step, BATCHES, epochs=1, manager=manager, verbose=2)
        assert manager.best_step == 10
    assert history.history == {"loss": [2.0], "a": [1.0], "c": [0.5]}


def without_evaluation(loop, folder):
    """Trains, and keeps the best by what no evaluation brings."""
    if loop == "callback":
        saver = kfb.callbacks.TrainStateCheckpoint(folder, keep_best="val_loss")
        return small().fit(X, Y, batch_size=8, verbose=0, callbacks=[saver])
    with kfb.CheckpointManager(folder, keep_best="val_loss", save_every=2) as manager:
        if loop == "fit":
            return kfb.fit(small(), X, Y, batch_size=8, verbose=0, checkpoint=manager)
        state = kfb.TrainState.from_keras(small())

        def own_step(state, batch):
            return state.replace(step=state.step + 1), {"loss": 2.0, "mae": 1.0}

        return kfb.train(state, own_step, BATCHES, epochs=1, manager=manager, verbose=0)


@pytest.mark.parametrize(("loop", "step"), [("train", 2), ("fit", 2), ("callback", None)])
def test_an_evaluation_that_never_comes_is_no_best(tmp_path, loop, step):
    with pytest.raises(kfb.ArgumentError, match=r"'loss'.*expected 'val_loss'") as raised:
        without_evaluation(loop, tmp_path)
    assert not hasattr(raised.value, "__notes__")  # the step is kept all the same
    assert kfb.CheckpointManager(tmp_path).latest_step == step


WEIGHTS = {0: 0.5, 2: 3.0}


def test_class_weights_are_those_of_fit():
    fitted = ROW.build()
    wanted = fitted.fit(**DATA, shuffle=False, epochs=2, class_weight=WEIGHTS)
    _, state, step = parts()
    state, history = kfb.train(state, step, BATCHES, epochs=2, class_weight=WEIGHTS, verbose=0)
    assert history.history == wanted.history
    assert differing(state.params, kfb.TrainState.from_keras(fitted).params) == []


@pytest.mark.slow
def test_class_weights_of_several_batches_at_once_and_of_one_hot_rows():
    model, single, step = parts()
    single, _ = kfb.train(single, step, BATCHES, epochs=1, class_weight=WEIGHTS, verbose=0)
    pairs = [
        tuple(np.stack(leaves) for leaves in zip(*BATCHES[i : i + 2], strict=True)) for i in range(0, 10, 2)
    ]
    model, state, _ = parts()
    double = kfb.make_train_step(model, steps_per_call=2)
    state, _ = kfb.train(state, double, pairs, epochs=1, class_weight=WEIGHTS, verbose=0)
    assert differing(state.params, single.params) == []

    seen = []
    rows = [(x, np.eye(3)[y]) for x, y in BATCHES]

    def own_step(state, batch):
        seen.append(batch[2])
        return state.replace(step=state.step + 1), {}

    _, state, _ = parts()
    kfb.train(state, own_step, rows, epochs=1, class_weight=WEIGHTS, verbose=0)
    expected = [[WEIGHTS.get(int(label), 1.0) for label in y.reshape(-1)] for _, y in BATCHES]
    assert [weights.tolist() for weights in seen] == expected


WRONG = {
    "sample weights": ([(x, y, np.ones(len(y))) for x, y in BATCHES], WEIGHTS, "sample weights"),
    "no labels": ([(x,) for x, _ in BATCHES], WEIGHTS, "not \\(x, y\\)"),
    "two outputs": ([(x, (y, y)) for x, y in BATCHES], WEIGHTS, "not \\(x, y\\)"),
    "a list": (BATCHES, [1.0, 2.0], "got a list"),
    "names": (BATCHES, {"cat": 1.0}, "got a dict of other types"),
}


@pytest.mark.parametrize(("data", "weights", "words"), WRONG.values(), ids=WRONG)
def test_wrong_class_weights_are_explained(data, weights, words):
    _, state, step = parts()
    with pytest.raises(kfb.ArgumentError, match=words):
        kfb.train(state, step, data, epochs=1, class_weight=weights, verbose=0)


def test_callbacks_that_need_fit_are_refused_by_name(tmp_path):
    for callback in (
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        kfb.callbacks.TrainStateCheckpoint(tmp_path / "run"),
    ):
        _, state, step = parts()
        with pytest.raises(kfb.ArgumentError, match=type(callback).__name__) as raised:
            kfb.train(state, step, BATCHES, epochs=1, callbacks=[callback], verbose=0)
        assert "manager=kfb.CheckpointManager" in str(raised.value)


class Freezes(keras.callbacks.Callback):
    """What `fit` fails on, too."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].trainable = False


def test_freezing_within_a_run_is_explained():
    _, state, step = parts()
    with pytest.raises(kfb.StructureMismatchError, match="other trainable variables"):
        kfb.train(state, step, BATCHES, epochs=2, callbacks=[Freezes()], verbose=0)


@pytest.mark.slow
def test_averages_of_the_weights_are_put_in_their_place():
    def build():
        model = ROW.build()
        model.compile(keras.optimizers.Adam(0.1, use_ema=True), "sparse_categorical_crossentropy")
        return model

    fitted, model = build(), build()
    fitted.fit(**DATA, shuffle=False, epochs=2)
    state = kfb.TrainState.from_keras(model)
    state, _ = kfb.train(state, kfb.make_train_step(model), BATCHES, epochs=2, verbose=0)
    expected = kfb.TrainState.from_keras(fitted)
    assert differing([state.params, state.opt_state], [expected.params, expected.opt_state]) == []
    kfb.make_train_step(model)(state, BATCHES[0])  # shares no buffer between weights and averages


def test_of_several_processes_only_the_first_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda *args: 1)
    _, state, step = parts(keras.optimizers.SGD(0.5))
    callbacks = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.25),
    ]
    state, history = kfb.train(state, step, BATCHES, epochs=1, callbacks=callbacks, verbose=2)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert float(state.opt_state["learning_rate"]) == 0.25  # every process takes the same steps
    assert len(history.history["loss"]) == 1
