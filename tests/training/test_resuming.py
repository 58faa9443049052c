"""kfb.train on a folder that holds a run: the same run goes on, or what differs is said."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support.cases import TREES, differing

X = np.random.default_rng(0).normal(size=(22, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def batches(size=4, rows=22):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, rows, size)]


def parts():
    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(3), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model, kfb.TrainState.from_keras(model), kfb.make_train_step(model)


def run(folder, data=None, callbacks=(), **options):
    model, state, step = parts()
    given = {"eval_step": kfb.make_eval_step(model), "eval_data": batches(rows=8), "epochs": 8, "verbose": 1}
    with kfb.CheckpointManager(folder, save_every=4) as manager:
        data = batches() if data is None else data
        state, history = kfb.train(
            state, step, data, manager=manager, callbacks=callbacks, **{**given, **options}
        )
    return model, state, history


class StopError(Exception):
    """Ends a run, as a crash does."""


class Stops(keras.callbacks.Callback):
    """Ends a run at one of its batches."""

    def __init__(self, at):
        super().__init__()
        self._numbers = iter(range(1, at))  # no checkpoint remembers an iterator

    def on_train_batch_end(self, batch, logs=None):
        if next(self._numbers, None) is None:
            raise StopError


def remembering(folder):
    """Callbacks that remember something, and files."""
    folder.mkdir(exist_ok=True)
    weights = {"save_weights_only": True, "save_best_only": True}
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, cooldown=1, min_delta=0.05),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ModelCheckpoint(folder / "best.weights.h5", monitor="val_loss", **weights),
        keras.callbacks.CSVLogger(folder / "log.csv"),
    ]


def left(folder):
    """What the callbacks left in a folder."""
    model, _, _ = parts()
    model.load_weights(folder / "best.weights.h5")
    return (folder / "log.csv").read_text(), [weight.tolist() for weight in model.get_weights()]


@pytest.mark.slow
def test_a_run_that_was_stopped_anywhere_ends_as_one_that_was_not(tmp_path):
    model, straight, wanted = run(tmp_path / "straight", callbacks=remembering(tmp_path / "a"))
    for at in (3, 6, 1, 5):
        with pytest.raises(StopError):
            run(tmp_path / "broken", callbacks=[*remembering(tmp_path / "b"), Stops(at)])
    model, state, history = run(tmp_path / "broken", callbacks=remembering(tmp_path / "b"))
    assert history.history == wanted.history
    assert history.epoch == wanted.epoch
    assert left(tmp_path / "b") == left(tmp_path / "a")
    assert differing([getattr(state, t) for t in TREES], [getattr(straight, t) for t in TREES]) == []
    held = kfb.TrainState.from_keras(model)
    assert differing([held.params, held.opt_state], [straight.params, straight.opt_state]) == []


def early():
    return [keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=1, restore_best_weights=True)]


@pytest.mark.slow
def test_a_run_that_a_callback_ended_stays_ended(tmp_path, capsys):
    _, ended, history = run(tmp_path, callbacks=early())
    assert len(history.epoch) == 2
    capsys.readouterr()
    model, state, again = run(tmp_path, callbacks=early())
    printed = capsys.readouterr().out
    assert "EarlyStopping" in printed
    assert "resume='continue'" in printed
    assert differing(state, ended) == []
    assert differing(kfb.TrainState.from_keras(model).params, ended.params) == []
    assert again.history == history.history
    _, state, on = run(tmp_path, callbacks=[], resume="continue")
    assert int(state.step) == 48
    assert len(on.history["loss"]) == 8
    assert "resumed from step 12, at epoch 3, batch 0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_ended_is_not_begun_again_and_more_epochs_go_on(tmp_path, capsys):
    _, first, _ = run(tmp_path, epochs=2)
    _, state, history = run(tmp_path, epochs=2)
    assert "came to its end before; step 12 is restored" in capsys.readouterr().out
    assert differing(state, first) == []
    assert len(history.history["loss"]) == 2
    _, state, history = run(tmp_path, epochs=3)
    assert int(state.step) == 18
    assert len(history.history["loss"]) == 3


class Drawing(keras.layers.Layer):
    """Draws in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


class HeldOut:
    """Batches to evaluate on; the third time, one fails."""

    count = 0

    def __iter__(self):
        yield batches()[0]
        self.count += 1
        if self.count == 3:
            raise StopError
        yield batches()[1]


@pytest.mark.slow
def test_a_run_that_was_broken_off_in_its_last_evaluation_leaves_its_result(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), Drawing()])
    model.compile(keras.optimizers.Adam(0.1, use_ema=True), "mse")
    first, broken = kfb.TrainState.from_keras(model), HeldOut()
    steps = {"train_step": kfb.make_train_step(model, donate=False), "eval_step": kfb.make_eval_step(model)}

    def trained(folder, held_out):
        state = jax.tree.map(jnp.copy, first)
        with kfb.CheckpointManager(folder, keep_best=("val_loss", "max"), save_every=6) as manager:
            given = {"data": batches(), "eval_data": held_out, "epochs": 3, "manager": manager}
            state, history = kfb.train(state, **steps, **given)
            return {tree: getattr(state, tree) for tree in TREES}, history.history, manager.best_step

    wanted = trained(tmp_path / "straight", batches(rows=8))
    with pytest.raises(StopError):
        trained(tmp_path / "broken", broken)
    for _ in range(2):  # to its end, and with its result
        state, *rest = trained(tmp_path / "broken", broken)
        assert differing(state, wanted[0]) == []
        assert rest == list(wanted[1:])
    assert "came to its end before; step 18 is restored" in capsys.readouterr().out


class Paused(keras.callbacks.Callback):
    """Stops at a limit of its own."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


@pytest.mark.slow
def test_a_run_that_was_only_paused_goes_on(tmp_path):
    _, straight, wanted = run(tmp_path / "straight", epochs=2)
    run(tmp_path / "paused", epochs=2, callbacks=[Paused()])
    _, state, history = run(tmp_path / "paused", epochs=2, callbacks=[Paused()])
    assert history.history == wanted.history
    assert differing([getattr(state, t) for t in TREES], [getattr(straight, t) for t in TREES]) == []


class Reloaded:
    """Batches of another kind of loader."""

    def __iter__(self):
        return iter(batches())


OTHER = {
    "batch size": (lambda: batches(5, 20) + batches(5, 10), "batch of 5 rows", "2 or 4 rows"),
    "number of batches": (lambda: batches()[:5], "5 batches", "expected 6"),
    "kind of loader": (Reloaded, "Reloaded", "sequence"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "got", "expected"), OTHER.values(), ids=OTHER)
def test_other_data_is_an_error_that_names_both(tmp_path, data, got, expected):
    with pytest.raises(StopError):
        run(tmp_path, callbacks=[Stops(9)])
    with pytest.raises(kfb.ArgumentError, match=got) as raised:
        run(tmp_path, data=data())
    assert expected in str(raised.value)
    assert "restart_epoch" in str(raised.value)
    _, state, history = run(tmp_path, data=data(), epochs=2, resume="restart_epoch")
    assert int(state.step) == 9 + len(list(data()))
    assert len(history.history["loss"]) == 2


def grain_rows(size, rows=20):
    import grain

    data = grain.MapDataset.range(rows).seed(1).shuffle().map(lambda i: (X[i], Y[i]))
    return data.batch(size).to_iter_dataset()


@pytest.mark.slow
def test_another_batch_size_of_grain_is_seen_before_a_step(tmp_path):
    with pytest.raises(StopError):
        run(tmp_path, data=grain_rows(4), callbacks=[Stops(3)])
    for size in (5, 2):
        with pytest.raises(kfb.ArgumentError, match=f"a batch of {size} rows"):
            run(tmp_path, data=grain_rows(size))
    _, state, _ = run(tmp_path, data=grain_rows(4), epochs=2)
    assert int(state.step) == 10


@pytest.mark.slow
def test_a_smaller_last_batch_is_the_same_data(tmp_path):
    _, straight, _ = run(tmp_path / "straight", data=grain_rows(4, 18), epochs=2)
    with pytest.raises(StopError):
        run(tmp_path / "broken", data=grain_rows(4, 18), callbacks=[Stops(4)])
    _, state, _ = run(tmp_path / "broken", data=grain_rows(4, 18), epochs=2)
    assert differing([getattr(state, t) for t in TREES], [getattr(straight, t) for t in TREES]) == []


@pytest.mark.slow
def test_a_folder_of_fit_goes_on(tmp_path):
    model, _, _ = parts()
    saver = kfb.callbacks.TrainStateCheckpoint(tmp_path)
    wanted = model.fit(X, Y, batch_size=4, shuffle=False, epochs=2, verbose=0, callbacks=[saver])
    _, state, history = run(tmp_path, epochs=3)
    assert int(state.step) == 18
    assert len(history.epoch) in (1, 3)
    assert len(wanted.epoch) == 2


WRONG = {
    "a word": ({"resume": "again"}, "got 'again'"),
    "a flag": ({"resume": True}, "got True"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_words_are_explained(tmp_path, arguments, words):
    with pytest.raises(kfb.ArgumentError, match=words):
        run(tmp_path, **arguments)


def test_nothing_is_resumed_without_a_manager():
    _, state, step = parts()
    with pytest.raises(kfb.ArgumentError, match="without manager="):
        kfb.train(state, step, batches(), epochs=1, resume="continue")
