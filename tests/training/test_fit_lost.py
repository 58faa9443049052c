"""Whatever ends a `fit`, the model and the folder hold the last whole step, and the run goes on there."""

import csv
import functools
import random
import signal
import subprocess

import jax
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.training import phases
from tests.support.broken_fits import Broken, BrokenError
from tests.support.cases import differing, values
from tests.support.subprocesses import spawn
from tests.tables.callbacks import HELD_OUT, X, Y, adam, small

BATCHES, EPOCHS = 3, 3


class Rows(keras.utils.PyDataset):
    """Batches in order; reading one of them may fail."""

    def __init__(self, act=lambda count: None, x=X, y=Y):
        super().__init__()
        self.x, self.y, self.act, self.count = x, y, act, 0

    def __len__(self):
        return len(self.x) // 8

    def __getitem__(self, i):
        self.count += 1
        found = self.act(self.count)
        return found if found is not None else (self.x[8 * i : 8 * i + 8], self.y[8 * i : 8 * i + 8])


def averaged():
    """Its average is put into its weights at the end of training, and not before."""
    return small(optimizer=adam(use_ema=True, ema_momentum=0.5))


def callbacks(folder):
    return [
        keras.callbacks.EarlyStopping("loss", mode="max", patience=4, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", mode="max", patience=1),
        keras.callbacks.CSVLogger(folder / "log.csv"),
    ]


def run(folder, *broken, build=averaged, data=None, held_out=HELD_OUT, fit=kfb.fit, **options):
    """A `fit` of a new model; gives the model, and the history if nothing ended it."""
    np.random.seed(7)
    random.seed(7)
    model = build()
    data = {"x": X, "y": Y, "batch_size": 8} if data is None else {"x": data, "shuffle": False}
    given = {**data, "epochs": EPOCHS, "verbose": 0, "validation_data": held_out, **options}
    try:
        history = fit(model, **given, callbacks=[*callbacks(folder), *broken])
    except BaseException as error:
        return model, error
    return model, history


class EachStep(keras.callbacks.Callback):
    """Keeps all variables as they are after each step."""

    def __init__(self):
        super().__init__()
        self.after = []

    def on_train_begin(self, logs=None):
        self.after.append(held(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(held(self.model))


def held(model):
    """All variables but those of metrics, which evaluation uses too."""
    return {path: value for path, value in values(model).items() if path[0] != "metrics"}


@functools.cache
def unbroken(root, kind):
    """The variables after each step, those at the end, the history and the rows of the log."""
    folder, spy = root / f"unbroken {kind}", EachStep()
    folder.mkdir()
    model, history = run(folder, spy, data=Rows() if kind == "rows" else None)
    return spy.after, values(model), history.history, rows(folder)


def rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


HOOKS = [  # the hook, its how manieth call, the steps that were whole then
    ("on_train_begin", 1, 0),
    ("on_epoch_begin", 2, 3),
    ("on_train_batch_begin", 5, 4),
    ("on_train_batch_end", 5, 5),
    ("on_train_batch_end", 3, 3),
    ("on_test_begin", 2, 6),
    ("on_test_batch_begin", 2, 6),
    ("on_test_batch_end", 2, 6),
    ("on_test_end", 2, 6),
    ("on_epoch_end", 1, 3),
    ("on_epoch_end", 3, 9),
    ("on_train_end", 1, 9),
]
hooks = pytest.mark.parametrize(
    ("hook", "at", "steps"),
    [pytest.param(*row, marks=[] if row is HOOKS[3] else pytest.mark.slow) for row in HOOKS],
)


@pytest.mark.slow
@hooks
def test_an_exception_in_a_hook_leaves_the_last_whole_step(tmp_path, root, hook, at, steps):
    model, error = run(tmp_path, Broken(hook, at))
    assert type(error) is BrokenError
    after, end, _, _ = unbroken(root, "arrays")
    found, wanted = held(model), after[steps] if hook != "on_train_end" else end
    assert same_but_for_the_rate(found, {path: wanted[path] for path in found})


def same_but_for_the_rate(found, wanted):
    """Whether all is equal but the learning rate, which callbacks may have set for the next epoch."""
    rate = ("opt_state", "learning_rate")
    assert rate in found
    return not differing({**found, rate: 0}, {**wanted, rate: 0})


@pytest.mark.every(slow=2)
@pytest.mark.slow
@hooks
def test_after_an_exception_in_a_hook_the_run_goes_on(tmp_path, root, hook, at, steps):
    broken = Broken(hook, at)
    assert type(run(tmp_path, broken, checkpoint=tmp_path / "run")[1]) is BrokenError
    if steps and hook != "on_train_end":
        kept = small_restored(tmp_path / "run")
        assert differing(held(kept), unbroken(root, "arrays")[0][steps]) == []
    assert_goes_on(tmp_path, root, broken)


def small_restored(folder):
    model = averaged()
    kfb.restore(folder, model)
    return model


def assert_goes_on(folder, root, *broken, kind="arrays", **options):
    """Runs once more, and compares with the run that nothing ended."""
    model, history = run(folder, *broken, checkpoint=folder / "run", **options)
    assert not isinstance(history, BaseException), history
    _, wanted, told, log = unbroken(root, kind)
    assert differing(values(model), wanted) == []
    assert history.history == told
    assert history.epoch == [0, 1, 2]
    assert rows(folder) == log


class Decay(keras.callbacks.Callback):
    """Changes what it finds, by batch and by epoch, and counts."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        self.model.optimizer.learning_rate = self.model.optimizer.learning_rate * (1 - 0.01 * self.batches)

    def on_epoch_begin(self, epoch, logs=None):
        self.batches += 10
        self.model.optimizer.learning_rate = self.model.optimizer.learning_rate * 0.9

    on_epoch_end = on_epoch_begin


@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_batch_begin", 5),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in [("on_train_batch_begin", 1), ("on_epoch_begin", 2), ("on_epoch_end", 2)]
        ),
    ],
)
def test_what_hooks_did_before_a_step_that_failed_is_done_once(tmp_path, hook, at):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    wanted, history = run(folders[0], Decay())
    broken = Broken(hook, at)
    run(folders[1], Decay(), broken, checkpoint=folders[1] / "run")
    model, found = run(folders[1], Decay(), broken, checkpoint=folders[1] / "run")
    assert found.history == history.history
    assert differing(values(model), values(wanted)) == []


@pytest.mark.slow
def test_broken_at_every_batch_the_run_comes_to_its_end(tmp_path, root):
    for _ in range(BATCHES * EPOCHS):
        broken = Broken("on_train_batch_end", 2)
        _, found = run(tmp_path, broken, checkpoint=tmp_path / "run")
        if not isinstance(found, BaseException):
            break
    assert found.history == unbroken(root, "arrays")[2]
    assert rows(tmp_path) == unbroken(root, "arrays")[3]


# --- not by a hook


def failing(at, error):
    def act(count):
        if count == at:
            raise error

    return act


def misshaped(at):
    return lambda count: (X[:8, :3], Y[:8]) if count == at else None


# Keras reads a batch once before training, to build the model
DATA = [
    pytest.param(failing(6, BrokenError()), 4, id="the data"),
    pytest.param(failing(2, BrokenError()), 0, id="the first batch"),
    pytest.param(misshaped(6), 4, id="the shape of a batch"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("act", "steps"), DATA)
def test_data_that_fails_leaves_the_last_whole_step(tmp_path, root, act, steps):
    data = Rows(act)
    model, error = run(tmp_path, data=data)
    assert isinstance(error, BrokenError | ValueError)
    assert differing(held(model), unbroken(root, "rows")[0][counted(model)]) == []
    assert counted(model) >= steps - 1
    again = Rows(act)
    assert isinstance(run(tmp_path, data=again, checkpoint=tmp_path / "run")[1], Exception)
    assert_goes_on(tmp_path, root, kind="rows", data=Rows())


def counted(model):
    return int(model.optimizer.iterations)


@pytest.mark.slow
def test_validation_data_that_fails_leaves_the_last_whole_step(tmp_path, root):
    held_out = Rows(failing(3, BrokenError()), *HELD_OUT)
    model, error = run(tmp_path, held_out=held_out, checkpoint=tmp_path / "run")
    assert type(error) is BrokenError
    assert differing(held(model), unbroken(root, "arrays")[0][counted(model)]) == []
    assert counted(model) in (3, 6, 9)
    assert_goes_on(tmp_path, root)


def raising(at):
    """A model whose loss raises on the host, in the middle of a compiled step."""
    count = [at]

    def check(y):
        count[0] -= 1
        if count[0] == 0:
            raise BrokenError
        return y

    def loss(y, y_pred):
        y = jax.pure_callback(check, jax.ShapeDtypeStruct(y.shape, y.dtype), jax.lax.stop_gradient(y))
        return keras.ops.mean((y - y_pred) ** 2)

    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", loss)
    return model


@pytest.mark.slow
def test_a_step_that_fails_while_it_runs_leaves_the_newest_checkpoint(tmp_path):
    build = functools.partial(raising, 10**6)
    given = {"held_out": None, "checkpoint": tmp_path / "run"}
    wanted, _ = run(tmp_path, build=build, held_out=None)
    _, error = run(tmp_path, build=functools.partial(raising, 5), **given)
    assert isinstance(error, Exception)
    assert kfb.CheckpointManager(tmp_path / "run").latest_step in (3, 4)
    model, _ = run(tmp_path, build=build, **given)
    assert differing(held(model), held(wanted)) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_save_that_fails_once_is_done_again(tmp_path, root, monkeypatch, count):
    fails(monkeypatch, lambda n: n == count)
    model, error = run(tmp_path, checkpoint=tmp_path / "run")
    assert isinstance(error, OSError)
    assert same_but_for_the_rate(held(model), unbroken(root, "arrays")[0][3 * count])
    assert kfb.CheckpointManager(tmp_path / "run").latest_step == 3 * count
    assert_goes_on(tmp_path, root)


@pytest.mark.slow
def test_a_save_that_fails_names_the_newest_checkpoint(tmp_path, root, monkeypatch):
    fails(monkeypatch, lambda n: n >= 2)
    model, error = run(tmp_path, checkpoint=tmp_path / "run")
    assert "The last step was not saved: No space left on device" in error.__notes__[0]
    assert f"The newest whole checkpoint is step 3 in {tmp_path / 'run'}." in error.__notes__[0]
    assert same_but_for_the_rate(held(model), unbroken(root, "arrays")[0][6])
    monkeypatch.undo()
    assert_goes_on(tmp_path, root)


def fails(monkeypatch, which):
    calls, own = [0], kfb.CheckpointManager.save

    def save(self, *args, **kwargs):
        calls[0] += 1
        if which(calls[0]):
            raise OSError("No space left on device")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(kfb.CheckpointManager, "save", save)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_ends_it_as_well(tmp_path, root, error):
    broken = Broken("on_train_batch_end", 5, error)
    assert type(run(tmp_path, broken, checkpoint=tmp_path / "run")[1]) is error
    assert_goes_on(tmp_path, root, broken)


# --- processes


def interrupted(folder):
    """What Ctrl-C comes to, at no moment in particular."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    say = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: print("batch", flush=True))
    model = averaged()
    try:
        kfb.fit(model, X, Y, batch_size=8, epochs=10**6, verbose=0, callbacks=[say], checkpoint=folder)
    except KeyboardInterrupt:
        print("interrupted", counted(model))
    other = averaged()
    kfb.restore(folder, other)
    assert differing(held(model), held(other)) == []


@pytest.mark.slow
def test_ctrl_c_leaves_the_last_whole_step(tmp_path):
    with spawn(interrupted, str(tmp_path), stderr=subprocess.STDOUT) as process:
        for count, said in enumerate(process.stdout):
            if "interrupted" in said:
                break
            if count % 500 == 5:  # Python drops one that comes while it calls a finaliser
                process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert f"interrupted {kfb.CheckpointManager(tmp_path).latest_step}" in said


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """No `fit` on any folder came to its end before."""
    monkeypatch.setattr(phases, "_DONE", {})
