"""Whatever exception ends kfb.train, the last whole step is kept: in the state, the model and on disk."""

import signal

import jax
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import orbax_io
from tests.support.cases import TREES, differing

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
BATCHES = [(X[i : i + 4], X[i : i + 4, :1]) for i in range(0, 24, 4)]  # 6 in an epoch
HELD_OUT = BATCHES[:2]
EPOCHS = 3


def parts():
    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(3), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile("adam", "mse", metrics=["mae"])
    return model, kfb.TrainState.from_keras(model), kfb.make_train_step(model)


class FailsError(Exception):
    """What something throws, and nothing catches."""


class Once(keras.callbacks.Callback):
    """Throws in one hook, the second time that it is called; its rows are those of the epochs that ended."""

    def __init__(self, hook, error, time=2):
        super().__init__()
        self.calls, self.rows, self._error = 0, [], error

        def own(*args, logs=None):
            self.calls += 1
            if self.calls == time:
                raise error

        if hook:
            setattr(self, hook, own)

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append((epoch, logs["loss"], logs["val_loss"]))


def run(state, step, model, folder=None, data=BATCHES, callbacks=(), evaluation=HELD_OUT, **options):
    given = {"eval_step": kfb.make_eval_step(model), "eval_data": evaluation, "epochs": EPOCHS, "verbose": 0}
    if folder is None:
        return kfb.train(state, step, data, callbacks=callbacks, **{**given, **options})
    with kfb.CheckpointManager(folder, save_every=4) as manager:
        return kfb.train(state, step, data, callbacks=callbacks, manager=manager, **{**given, **options})


class Rows:
    """Batches, in whose iterator something is thrown at a batch of the second epoch."""

    def __init__(self, error, at=3):
        self._error, self._at, self._epochs = error, at, 0

    def __iter__(self):
        self._epochs += 1
        for number, batch in enumerate(BATCHES):
            if self._epochs == 2 and number == self._at:
                raise self._error
            yield batch


@pytest.fixture(scope="module")
def unbroken():
    model, state, step = parts()
    once = Once("", None)
    state, history = run(state, step, model, callbacks=[once])
    return state, history, once.rows


# where it is thrown: the step that is kept
HOOKS = {
    "on_epoch_begin": 6,
    "on_train_batch_begin": 1,
    "on_train_batch_end": 2,
    "on_test_begin": 12,
    "on_test_batch_begin": 6,
    "on_test_batch_end": 6,
    "on_test_end": 12,
}
ERRORS = {"error": FailsError, "interrupt": KeyboardInterrupt, "exit": SystemExit}


def require_kept(folder, step, state, model, unbroken):
    """The state and the model are those of a step, and another run ends as one that was not broken."""
    assert int(state.step) == step
    held = kfb.TrainState.from_keras(model)
    assert differing([state.params, state.opt_state], [held.params, held.opt_state]) == []
    with kfb.CheckpointManager(folder) as manager:
        assert manager.latest_step == step
        assert differing(manager.restore(state), state) == []
    wanted, history, rows = unbroken
    model, state, train_step = parts()
    once = Once("", None)
    state, resumed = run(state, train_step, model, folder, callbacks=[once])
    assert differing([getattr(state, t) for t in TREES], [getattr(wanted, t) for t in TREES]) == []
    assert resumed.history == history.history
    assert once.rows == rows


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_a_hook_loses_nothing(tmp_path, hook, unbroken):
    model, state, step = parts()
    with pytest.raises(FailsError):
        run(state, step, model, tmp_path, callbacks=[Once(hook, FailsError())])
    require_kept(tmp_path, HOOKS[hook], state, model, unbroken)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_exception_in_the_data_loses_nothing(tmp_path, kind, unbroken):
    model, state, step = parts()
    with pytest.raises(ERRORS[kind]):
        run(state, step, model, tmp_path, data=Rows(ERRORS[kind]()), callbacks=[Once("", None)])
    require_kept_elsewhere(tmp_path, 9, state)


def require_kept_elsewhere(folder, step, state):
    """The step is kept, where data of another kind would go on."""
    assert int(state.step) == step
    with kfb.CheckpointManager(folder) as manager:
        assert manager.latest_step == step
        assert differing(manager.restore(state), state) == []


@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_end", "on_train_begin"])
def test_an_exception_in_the_last_hook_is_met_again(tmp_path, hook, unbroken):
    model, state, step = parts()
    first = Once("", None)
    with pytest.raises(FailsError):
        run(state, step, model, tmp_path, callbacks=[first, Once(hook, FailsError(), time=1)])
    kept = {"on_epoch_end": 6, "on_train_end": 18, "on_train_begin": 0}[hook]
    assert int(state.step) == kept
    model, state, step = parts()
    again = Once("", None)
    state, history = run(state, step, model, tmp_path, callbacks=[again, Once("", None)])
    assert differing([getattr(state, t) for t in TREES], [getattr(unbroken[0], t) for t in TREES]) == []
    assert history.history == unbroken[1].history
    assert again.rows == unbroken[2]


def test_an_exception_in_the_step_loses_nothing(tmp_path, unbroken):
    model, state, step = parts()

    def failing(state, batch):
        if int(state.step) == 8:
            raise FailsError
        return step(state, batch)

    with pytest.raises(FailsError):
        run(state, failing, model, tmp_path, callbacks=[Once("", None)])
    require_kept(tmp_path, 8, state, model, unbroken)


def test_an_exception_in_the_evaluation_loses_nothing(tmp_path, unbroken):
    model, state, step = parts()
    with pytest.raises(kfb.StructureMismatchError):
        run(state, step, model, tmp_path, evaluation=[(X[:, :2], X[:, :1])], callbacks=[Once("", None)])
    require_kept(tmp_path, 6, state, model, unbroken)


def test_without_a_manager_the_state_is_kept():
    model, state, step = parts()
    with pytest.raises(FailsError):
        run(state, step, model, data=Rows(FailsError()))
    assert int(state.step) == 9
    state.assign_to(model)


def test_a_step_that_took_the_buffers_over_is_said(tmp_path):
    model, state, step = parts()

    def failing(state, batch):
        if int(state.step) == 6:
            step(state, batch)
            raise FailsError  # as an accelerator does when its memory is full
        return step(state, batch)

    with pytest.raises(FailsError) as raised:
        run(state, failing, model, tmp_path, callbacks=[Once("", None)])
    assert "The newest whole checkpoint is step 4" in "".join(raised.value.__notes__)
    with pytest.raises(kfb.OwnershipError):
        model(X)
    with kfb.CheckpointManager(tmp_path) as manager:
        assert int(manager.restore(parts()[1]).step) == 4


def test_a_save_that_failed_is_said(tmp_path, monkeypatch):
    model, state, step = parts()
    save = orbax_io.Root.save

    def full(root, number, *args, **kwargs):
        if number > 4:
            raise kfb.CheckpointError("disk", got="no space", expected="space", fix="Free some.")
        save(root, number, *args, **kwargs)

    monkeypatch.setattr(orbax_io.Root, "save", full)
    with pytest.raises(kfb.CheckpointError, match="no space") as raised:
        run(state, step, model, tmp_path)
    notes = "".join(raised.value.__notes__)
    assert "was not saved" in notes
    assert "The newest whole checkpoint is step 4" in notes
    assert int(state.step) == 8  # the state is kept all the same


def test_sigusr1_saves_and_trains_on(tmp_path):
    _model, state, step = parts()

    class Asks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                signal.raise_signal(signal.SIGUSR1)

    with kfb.CheckpointManager(tmp_path, save_every=1000, max_to_keep=None) as manager:
        state, _ = kfb.train(state, step, BATCHES, epochs=2, callbacks=[Asks()], manager=manager, verbose=0)
        assert manager.all_steps() == [3, 9, 12]


class Own:
    """An iterator with a position, of shuffled batches."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return BATCHES[(5 * self.at) % 6]

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


@pytest.mark.parametrize("where", ["on_train_batch_begin", "on_train_batch_end"])
def test_a_batch_that_was_read_and_not_trained_on_comes_again(tmp_path, where):
    _, state, step = parts()
    straight, _ = kfb.train(state, step, Own(), steps=9, verbose=0)
    _, state, step = parts()
    once = Once(where, FailsError(), time=5)
    with kfb.CheckpointManager(tmp_path, save_every=3) as manager:
        with pytest.raises(FailsError):
            kfb.train(state, step, Own(), steps=9, manager=manager, callbacks=[once], verbose=0)
        _, state, step = parts()
        state, _ = kfb.train(state, step, Own(), steps=9, manager=manager, verbose=0)
    assert differing([getattr(state, t) for t in TREES], [getattr(straight, t) for t in TREES]) == []


def test_the_model_shares_no_buffer_with_the_result():
    model, state, step = parts()
    state, _ = run(state, step, model, callbacks=[Once("", None)])
    held = {id(variable.value) for variable in (*model.variables, *model.optimizer.variables)}
    assert held.isdisjoint(map(id, jax.tree.leaves(state)))
    step(state, BATCHES[0])  # donates the state
    model(X)


def test_without_callbacks_the_model_is_left_alone():
    model, state, step = parts()
    before = [np.asarray(weight) for weight in model.get_weights()]
    run(state, step, model)
    assert all(map(np.array_equal, model.get_weights(), before))
