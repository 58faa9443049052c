"""`TrainStateCheckpoint`: `fit`, stopped anywhere and run again, is `fit` without a break."""

import functools
import random
import signal
from pathlib import Path

import grain
import keras
import numpy as np
import pytest
from keras import layers
from orbax.checkpoint import v1

import keras_flax_bridge as kfb
from tests.attacks import goods
from tests.support import resumable_runs as resuming
from tests.support.cases import TREES, differing
from tests.support.subprocesses import terminated

# what Keras says at the end of data whose length it doesn't know
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")

X, Y, SIZE = resuming.X, resuming.Y, resuming.SIZE
EPOCHS = 3
BATCHES = len(X) // SIZE


class KilledError(Exception):
    """What stops a `fit` in the middle."""


class Kill(keras.callbacks.Callback):
    """Stops `fit` after some batches, as if the process had died; it comes last in the list."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KilledError


class Rows(keras.utils.PyDataset):
    """Batches by number; Keras shuffles their order."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, i):
        return X[i * SIZE : (i + 1) * SIZE], Y[i * SIZE : (i + 1) * SIZE]


def grained():
    rows = grain.MapDataset.range(len(X)).seed(3).shuffle()
    return rows.map(lambda i: (X[i], Y[i])).batch(SIZE)


def generator(seed=5):
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(0, len(X), SIZE)
        yield X[rows], Y[rows]


DATA = {
    "arrays": lambda: {"x": X, "y": Y, "batch_size": SIZE},
    "in order": lambda: {"x": X, "y": Y, "batch_size": SIZE, "shuffle": False},
    "by batch": lambda: {"x": X, "y": Y, "batch_size": SIZE, "shuffle": "batch"},
    "grain": lambda: {"x": grained(), "shuffle": False},
    "rows": lambda: {"x": Rows(), "shuffle": False},
}


def small():
    """Compiles in no time; a seed, moving statistics, half-full accumulators."""
    keras.utils.set_random_seed(1)
    head = [layers.Flatten(), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    model = keras.Sequential([keras.Input(X.shape[1:]), *head])
    model.compile(keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2), "mse", metrics=["mae"])
    return model


def fit(folder, data, *, kill=None, build=small, epochs=EPOCHS, **options):
    """One process's `fit`: a new model, other global states; returns the final state and the history."""
    again = bool(folder) and any(Path(folder).iterdir())
    np.random.seed(7 + again)
    random.seed(1 + again)
    model = build()
    callbacks = [kfb.callbacks.TrainStateCheckpoint(folder, **options)] if folder else []
    callbacks += [Kill(kill)] if kill else []
    try:
        history = model.fit(**data(), epochs=epochs, verbose=0, callbacks=callbacks)
    except KilledError:
        return None, None
    return kfb.TrainState.from_keras(model), history.history


BREAKS = [  # a break after so many batches, saved how often
    (BATCHES + 2, "epoch"),
    (2, 1),
    (BATCHES + 3, 2),
    (BATCHES, 1),
    (2 * BATCHES, BATCHES),
]
FAST = (small, "arrays", BREAKS[2])


def mark(build, data, at):
    """Each kind of data with two breaks in the second pass; with every break in the full run."""
    if (build, data, at) == FAST:
        return ()
    turn = (list(DATA).index(data) + BREAKS.index(at)) % len(BREAKS)
    return pytest.mark.slow if turn in (0, 2) else pytest.mark.full


ALL = [
    pytest.param(build, data, at, marks=mark(build, data, at))
    for build, kinds in ((small, ["arrays", "grain"]), (resuming.everything, DATA))
    for data in kinds
    for at in BREAKS
]


@functools.cache
def unbroken(build, data):
    """The final state and history of `fit` without a break."""
    return fit("", DATA[data], build=build)


@pytest.mark.every(slow=3)
@pytest.mark.parametrize(("build", "data", "at"), ALL)
def test_stopped_anywhere_it_is_fit_without_a_break(tmp_path, build, data, at):
    options = {"build": build, "save_freq": at[1], "max_to_keep": None}
    assert fit(tmp_path, DATA[data], kill=at[0], **options) == (None, None)
    state, history = fit(tmp_path, DATA[data], **options)
    wanted, told = unbroken(build, data)
    assert differing(trees(state), trees(wanted)) == []
    assert history == told
    stored = kfb.restore(tmp_path, kfb.TrainState.abstract(build, batch=(X[:SIZE], Y[:SIZE])))
    assert int(stored.step) == EPOCHS * BATCHES
    assert differing(stored.params, wanted.params) == []


def trees(state):
    return {tree: getattr(state, tree) for tree in TREES}


@pytest.mark.slow
def test_several_steps_at_a_time(tmp_path):
    def build():
        model = small()
        model.steps_per_execution = 2
        return model

    assert fit(tmp_path, DATA["arrays"], kill=5, build=build, save_freq=2) == (None, None)
    state, _ = fit(tmp_path, DATA["arrays"], build=build, save_freq=2)
    assert differing(trees(state), trees(unbroken(small, "arrays")[0])) == []


@pytest.mark.slow
def test_a_generator_that_goes_over_epochs_is_read_again_from_its_beginning(tmp_path):
    data = lambda: {"x": generator(), "steps_per_epoch": BATCHES, "shuffle": False}  # noqa: E731
    fit(tmp_path, data, kill=2, save_freq=1)
    fit(tmp_path, data, kill=BATCHES + 3, save_freq=1)
    state, history = fit(tmp_path, data)
    wanted, told = fit("", data)
    assert differing(trees(state), trees(wanted)) == []
    assert history == told


@pytest.mark.slow
def test_data_that_differs_is_warned_about(tmp_path):
    data = lambda seed: lambda: {"x": generator(seed), "steps_per_epoch": BATCHES, "shuffle": False}  # noqa: E731
    fit(tmp_path, data(5), kill=BATCHES + 3, save_freq=1)
    with pytest.warns(UserWarning, match="the data of epoch 1 differs from before the interruption"):
        fit(tmp_path, data(6))


def test_what_callbacks_do_at_the_end_of_an_epoch_is_in_the_checkpoint(tmp_path):
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = self.model.optimizer.learning_rate / 2

    np.random.seed(7)
    model = small()
    callbacks = [kfb.callbacks.TrainStateCheckpoint(tmp_path), Halve()]
    model.fit(**DATA["arrays"](), epochs=2, verbose=0, callbacks=callbacks)
    state = kfb.restore(tmp_path, kfb.TrainState.abstract(small, batch=(X[:SIZE], Y[:SIZE])), step=BATCHES)
    assert float(state.opt_state["learning_rate"]) == pytest.approx(5e-3)


# --- fit again


@pytest.mark.slow
def test_a_fit_that_ended_is_trained_on_in_its_process_and_not_in_a_new_one(tmp_path):
    model = small()
    for steps in (2 * BATCHES, 4 * BATCHES):  # a new callback, the same folder
        saver = kfb.callbacks.TrainStateCheckpoint(tmp_path)
        model.fit(**DATA["arrays"](), epochs=2, verbose=0, callbacks=[saver])
        assert kfb.CheckpointManager(tmp_path).latest_step == steps
    wanted = kfb.TrainState.from_keras(model)
    other = small()
    with pytest.warns(UserWarning, match="2 epochs were trained before"):
        other.fit(**DATA["arrays"](), epochs=2, verbose=0, callbacks=[saver])
    assert differing(trees(kfb.TrainState.from_keras(other)), trees(wanted)) == []
    history = other.fit(**DATA["arrays"](), epochs=1, verbose=0, callbacks=[saver])
    assert history.epoch == [0]
    loaded = kfb.load_model(tmp_path)
    assert int(loaded.optimizer.iterations) * 2 + 1 == 5 * BATCHES  # two batches an update


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_epochs(tmp_path):
    fit(tmp_path, DATA["arrays"], build=small, epochs=2)
    state, history = fit(tmp_path, DATA["arrays"], build=small, epochs=EPOCHS)
    wanted, told = unbroken(small, "arrays")
    assert history == told
    assert differing(trees(state), trees(wanted)) == []


@pytest.mark.parametrize("change", ["optimizer", "layer"])
def test_another_model_is_refused_and_nothing_is_assigned(tmp_path, change):
    fit(tmp_path, DATA["arrays"], build=small, epochs=1)
    other = small()
    if change == "optimizer":
        other.compile("sgd", "mse")
    else:
        other = keras.Sequential([keras.Input(X.shape[1:]), *other.layers, layers.Dense(1)])
        other.compile("adam", "mse")
    before = other.get_weights()
    saver = kfb.callbacks.TrainStateCheckpoint(tmp_path)
    with pytest.raises(kfb.StructureMismatchError, match="Nothing was assigned"):
        other.fit(**DATA["arrays"](), epochs=2, verbose=0, callbacks=[saver])
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


def test_a_folder_that_fit_did_not_write_is_refused(tmp_path):
    kfb.save(tmp_path / "3", kfb.TrainState.from_keras(small()))
    with pytest.raises(kfb.CheckpointError, match="not written by fit"):
        fit(tmp_path, DATA["arrays"], build=small)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"batch": "1"},
        {"iterations": 1.5},
        {"finished": 1},
        {"batches": []},
        {"numpy": None},
        {"python": {}},
    ],
)
def test_a_malformed_position_of_fit_is_named(tmp_path, change):
    fit(tmp_path, DATA["arrays"], build=small, epochs=1)
    step = tmp_path / str(BATCHES)
    found = goods.ours(step)
    found["data"]["json"]["fit"].update(change)
    goods.set_ours(step, found)
    with pytest.raises(kfb.CorruptCheckpointError, match=f"data/json/fit: got '{next(iter(change))}'"):
        fit(tmp_path, DATA["arrays"], build=small, epochs=2)


@pytest.mark.slow
def test_a_position_of_fit_with_a_field_of_a_newer_version_is_read(tmp_path):
    fit(tmp_path, DATA["arrays"], build=small, epochs=1)
    step = tmp_path / str(BATCHES)
    found = goods.ours(step)
    assert found["data"]["json"]["fit"].keys() == AS_FIRST_WRITTEN - {"batches"}
    found["data"]["json"]["fit"]["of_tomorrow"] = 1
    goods.set_ours(step, found)
    state, _ = fit(tmp_path, DATA["arrays"], build=small, epochs=EPOCHS)
    assert differing(trees(state), trees(unbroken(small, "arrays")[0])) == []


# e447da4 reads a position with these fields and no others
AS_FIRST_WRITTEN = {"epoch", "batch", "iterations", "finished", "batches", "numpy", "python"}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"save_freq": 0}, "save_freq"), ({"save_freq": "batch"}, "save_freq"), ({"layout": "x"}, "layout")],
)
def test_wrong_use_is_explained(tmp_path, options, words):
    with pytest.raises(kfb.ArgumentError, match=words):
        kfb.callbacks.TrainStateCheckpoint(tmp_path, **options)


@pytest.mark.slow
def test_the_best_is_known_after_a_restart(tmp_path):
    options = {"build": small, "keep_best": ("loss", "max"), "max_to_keep": 1}
    fit(tmp_path, DATA["arrays"], kill=BATCHES + 2, **options)
    fit(tmp_path, DATA["arrays"], **options)  # the loss falls: the first epoch's is the largest
    with kfb.CheckpointManager(tmp_path, keep_best=("loss", "max")) as manager:
        assert manager.all_steps() == [BATCHES, EPOCHS * BATCHES]
        assert manager.best_step == BATCHES


# --- what ends a process


def fit_for_ever(folder):
    """What SIGTERM comes to."""
    say = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: print("batch", flush=True))
    saver = kfb.callbacks.TrainStateCheckpoint(folder, save_freq=10**9)
    small().fit(**DATA["arrays"](), epochs=10**9, verbose=0, callbacks=[say, saver])


@pytest.mark.slow
def test_sigterm_ends_with_a_checkpoint(tmp_path):
    assert terminated(fit_for_ever, str(tmp_path)) == 0
    assert kfb.verify(tmp_path).ok
    step = kfb.CheckpointManager(tmp_path).latest_step
    state, _ = fit(tmp_path, DATA["arrays"], build=small, epochs=step // BATCHES + 1)
    assert int(state.opt_state["iteration"]) == (step // BATCHES + 1) * BATCHES


@pytest.mark.slow
def test_after_an_exception_sigterm_is_what_it_was(tmp_path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        fit(tmp_path, DATA["arrays"], kill=2)
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        fit(tmp_path, DATA["arrays"])
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_save_that_failed_in_the_background_is_raised_at_the_end(tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        return Failed()

    class Failed:
        def result(self):
            raise OSError("No space left on device")

    monkeypatch.setattr(v1.training.Checkpointer, "save_checkpointables_async", failing)
    with pytest.raises(kfb.CheckpointError, match="No space left"):
        fit(tmp_path, DATA["arrays"], build=small, epochs=1)
