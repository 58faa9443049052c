"""A `fit` that is run again on its folder goes on: the same bits as without a break."""

import functools
import os
import random
import signal

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.training import phases
from tests.support.broken_fits import Broken, BrokenError
from tests.support.cases import differing, values
from tests.tables.callbacks import DATA, HELD_OUT, X, Y, six, small
from tests.tables.fit_arguments import Rows, generator, grained
from tests.training.test_fit_lost import EachStep

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """As if a new process began: no `fit` on any folder came to its end before."""
    anew = lambda: monkeypatch.setattr(phases, "_DONE", {})  # noqa: E731
    anew()
    return anew


def seeded(build=small):
    np.random.seed(7)
    random.seed(7)
    return build()


def run(folder, data=lambda: DATA, callbacks=(), build=small, fit=kfb.fit, **options):
    """One process's `fit`: its model and its history."""
    model = seeded(build)
    given = {"epochs": 3, "verbose": 0, **data(), **options}
    return model, fit(model, **given, callbacks=list(callbacks), checkpoint=folder)


def unbroken(data=lambda: DATA, callbacks=(), build=small, **options):
    """Keras's own."""
    model = seeded(build)
    given = {"epochs": 3, "verbose": 0, **data(), **options}
    return model, model.fit(**given, callbacks=list(callbacks))


def assert_equal(found, wanted):
    (model, history), (other, told) = found, wanted
    assert differing(values(model), values(other)) == []
    assert history.history == told.history
    assert history.epoch == told.epoch


# --- broken anywhere, saved by any rule


KINDS = {
    "arrays": lambda: DATA,
    "in order": lambda: {**DATA, "shuffle": False},
    "by batch": lambda: {**DATA, "shuffle": "batch"},
    "a ragged last batch": lambda: {**DATA, "batch_size": 10},
    "steps of arrays": lambda: {**DATA, "steps_per_epoch": 2},
    "a PyDataset": lambda: {"x": Rows()},
    "a PyDataset with workers": lambda: {"x": Rows(workers=2), "shuffle": False},
    "Grain": lambda: {"x": grained(), "shuffle": False},
    "a generator": lambda: {"x": generator(), "steps_per_epoch": 3, "shuffle": False},
    "validated": lambda: {**DATA, "validation_data": HELD_OUT},
    "split": lambda: {**DATA, "validation_split": 0.3},
}
RULES = [(1, 2), (1, 4), (2, 5), ("0.001s", 5), (100, 4)]  # how often it saves, where it breaks
FAST = {("validated", RULES[2])}


def mark(kind, rule):
    """Each kind of data by two rules in the second pass; by every rule in the full run."""
    if (kind, rule) in FAST:
        return ()
    turn = (list(KINDS).index(kind) + RULES.index(rule)) % len(RULES)
    return pytest.mark.slow if turn in (0, 2) else pytest.mark.full


@functools.cache
def reference(kind):
    return unbroken(KINDS[kind])


@pytest.mark.every(slow=2)
@pytest.mark.parametrize(
    ("kind", "rule"),
    [pytest.param(kind, rule, marks=mark(kind, rule)) for kind in KINDS for rule in RULES],
)
def test_broken_anywhere_it_is_fit_without_a_break(tmp_path, kind, rule):
    every, at = rule
    with kfb.CheckpointManager(tmp_path, save_every=every) as manager, pytest.raises(BrokenError):
        run(manager, KINDS[kind], [Broken("on_train_batch_end", at)])
    np.random.seed(8)
    with kfb.CheckpointManager(tmp_path, save_every=every) as manager:
        assert_equal(run(manager, KINDS[kind]), reference(kind))


class Hooked(Rows):
    """Does something between epochs."""

    def on_epoch_end(self):
        self.ended = True


DOUBTED = [
    ({"x": Rows(workers=2)}, "with workers"),
    ({"x": Hooked()}, "Hooked.on_epoch_end"),
    ({"x": generator(), "steps_per_epoch": 3, "shuffle": False}, "the same batches in each process"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "words"), DOUBTED)
def test_what_can_not_be_resumed_exactly_is_said_at_the_beginning(tmp_path, caplog, data, words):
    run(tmp_path, lambda: data, epochs=1)
    assert words in caplog.text
    assert "a resumed run may see other batches" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "a PyDataset", "Grain"])
def test_what_is_resumed_exactly_is_not_doubted(tmp_path, caplog, kind):
    run(tmp_path, KINDS[kind], epochs=1)
    assert "a resumed run may see" not in caplog.text


@pytest.mark.slow
def test_only_what_was_saved_counts_after_a_kill(tmp_path, monkeypatch):
    """Nothing is written when the process dies, as with SIGKILL."""
    for every, at in ((2, 4), (2, 6), (1, 3), (3, 7)):
        monkeypatch.setattr("keras_flax_bridge.training.recorded_fit.RecordedFit.failed", lambda *args: None)
        with kfb.CheckpointManager(tmp_path / f"{every} {at}", save_every=every) as manager:
            with pytest.raises(BrokenError):
                run(manager, KINDS["validated"], [Broken("on_train_batch_end", at)])
            manager.wait()
        assert kfb.CheckpointManager(tmp_path / f"{every} {at}").latest_step == (at - 1) // every * every
        monkeypatch.undo()
        monkeypatch.setattr(phases, "_DONE", {})
        assert_equal(run(tmp_path / f"{every} {at}", KINDS["validated"]), reference("validated"))


# --- signals


class Signal(keras.callbacks.Callback):
    """A signal that comes in some batch."""

    def __init__(self, number, at):
        super().__init__()
        self.left, self.number = [at], [number]

    def on_train_batch_begin(self, batch, logs=None):
        self.left[0] -= 1
        if self.left[0] == 0:
            os.kill(os.getpid(), self.number[0])

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 3, 4, 9))])
def test_sigterm_ends_the_process_and_the_run_goes_on(tmp_path, at):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, KINDS["validated"], [Signal(signal.SIGTERM, at)])
    assert ended.value.code == 0
    assert kfb.CheckpointManager(tmp_path).latest_step == at
    assert signal.getsignal(signal.SIGTERM) is before
    assert_equal(run(tmp_path, KINDS["validated"]), reference("validated"))


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5, 6, 9])
def test_sigusr1_saves_and_training_goes_on(tmp_path, at):
    with kfb.CheckpointManager(tmp_path, save_every=100, max_to_keep=None) as manager:
        assert_equal(run(manager, KINDS["validated"], [Signal(signal.SIGUSR1, at)]), reference("validated"))
        assert manager.all_steps() == sorted({at, 9})


# --- ended for good


def stopping(**options):
    return keras.callbacks.EarlyStopping("loss", mode="max", patience=1, **options)


@pytest.mark.parametrize("best", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_early_stopping_ended_stays_ended(tmp_path, capsys, new_process, best):
    first = run(tmp_path, six, [stopping(restore_best_weights=best)])
    assert first[1].epoch == [0, 1]
    new_process()
    again = run(tmp_path, six, [stopping(restore_best_weights=best)], verbose=2)
    assert_equal(again, first)
    assert "by EarlyStopping" in capsys.readouterr().out
    new_process()
    _, more = run(tmp_path, six, [stopping(restore_best_weights=best)], epochs=20)
    assert more.epoch == [0, 1]


@pytest.mark.slow
def test_continue_trains_on_where_early_stopping_had_ended(tmp_path, new_process):
    run(tmp_path, six, [stopping()])
    new_process()
    _, history = run(tmp_path, six, [stopping()], resume="continue")
    assert history.epoch == [0, 1, 2]  # it has no patience left
    assert {len(values) for values in history.history.values()} == {3}
    new_process()
    found = run(tmp_path, six, resume="continue")
    assert_equal(found, unbroken(six))


@pytest.mark.slow
def test_what_nan_ended_stays_ended(tmp_path, new_process):
    build = functools.partial(small, optimizer=keras.optimizers.SGD(1e30))
    stops = keras.callbacks.TerminateOnNaN
    _, first = run(tmp_path, callbacks=[stops()], build=build)
    new_process()
    build = functools.partial(small, optimizer=keras.optimizers.SGD(1e30))
    _, again = run(tmp_path, callbacks=[stops()], build=build)
    assert repr(again.history) == repr(first.history)


class Limit(keras.callbacks.Callback):
    """A limit of time, here of batches of this process."""

    def __init__(self, batches):
        super().__init__()
        self.left = [batches]

    def on_train_batch_end(self, batch, logs=None):
        self.left[0] -= 1
        if self.left[0] == 0:
            self.model.stop_training = True

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("batches", [2, 3, 4])
def test_a_run_that_a_limit_of_time_stopped_is_resumed(tmp_path, new_process, batches):
    for _ in range(9):
        model, history = run(tmp_path, callbacks=[Limit(batches)])
        new_process()
        if not model.stop_training:
            break
    assert history.epoch == [0, 1, 2]


@pytest.mark.slow
def test_more_epochs_go_on(tmp_path, new_process):
    run(tmp_path, epochs=2)
    new_process()
    found = run(tmp_path, epochs=3)
    assert_equal(found, unbroken())
    new_process()
    assert_equal(run(tmp_path, epochs=3), unbroken())
    new_process()
    _, fewer = run(tmp_path, epochs=1)
    assert fewer.epoch == [0, 1, 2]


# --- other data


def broken_off(folder, kind="arrays", at=5):
    with pytest.raises(BrokenError):
        run(folder, KINDS[kind], [Broken("on_train_batch_end", at)])


OTHER = [
    ({**DATA, "batch_size": 6}, ["batch size", "got 6", "expected 8"]),
    ({**DATA, "x": X[:16], "y": Y[:16]}, ["number of batches", "got 2", "expected 3"]),
    ({**DATA, "steps_per_epoch": 2}, ["number of batches", "got 2", "expected 3"]),
    ({"x": Rows()}, ["loader", "got 'PyDataset'", "expected 'arrays'"]),
    (
        {"x": generator(), "steps_per_epoch": 3, "shuffle": False},
        ["loader", "got 'generator'", "expected 'arrays'"],
    ),
]


@pytest.mark.parametrize(
    ("data", "words"),
    [pytest.param(*row, marks=pytest.mark.slow if i else ()) for i, row in enumerate(OTHER)],
)
def test_other_data_is_refused_and_both_are_named(tmp_path, new_process, data, words):
    broken_off(tmp_path)
    with pytest.raises(kfb.ArgumentError) as error:
        run(tmp_path, lambda: data)
    for word in words:
        assert word in str(error.value)
    _, history = run(tmp_path, lambda: data, resume="restart_epoch")
    assert history.epoch == [0, 1, 2]


@pytest.mark.slow
def test_restart_epoch_begins_the_epoch_again_from_the_weights_there_are(tmp_path):
    broken_off(tmp_path)
    spy = EachStep()
    model, history = run(tmp_path, lambda: {**DATA, "batch_size": 6}, [spy], resume="restart_epoch")
    assert len(spy.after) == 1 + 2 * 4
    assert int(model.optimizer.iterations) == 5 + 2 * 4
    assert len(history.history["loss"]) == 3


@pytest.mark.parametrize("resume", ["never", True])
def test_another_word_for_resume_is_refused(tmp_path, resume):
    with pytest.raises(kfb.ArgumentError, match="continue"):
        run(tmp_path, resume=resume)


def test_resume_without_a_checkpoint_is_refused():
    with pytest.raises(kfb.ArgumentError, match="checkpoint="):
        kfb.fit(small(), X, Y, resume="continue")
