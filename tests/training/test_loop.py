"""kfb.train against `fit`; saving, resuming, stopping."""

import signal

import jax
import keras
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.leaves import placed
from tests.support.cases import TREES, differing
from tests.support.subprocesses import terminated, together
from tests.tables import contracts

ROW = contracts.SEQUENTIAL
BATCHES = list(ROW.batches(10))
DATA = {**ROW.data, "x": ROW.x[: 10 * contracts.SIZE], "y": ROW.y[: 10 * contracts.SIZE]}
HELD_OUT = (ROW.x[-16:], ROW.y[-16:])


def parts(optimizer="adam"):
    model = ROW.build()
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, kfb.TrainState.from_keras(model), kfb.make_train_step(model)


@pytest.mark.slow
def test_it_is_fit():
    fitted = ROW.build()
    wanted = fitted.fit(**DATA, shuffle=False, epochs=3, validation_data=HELD_OUT, validation_batch_size=16)
    model, state, train_step = parts()
    eval_step = kfb.make_eval_step(model)
    state, history = kfb.train(
        state, train_step, BATCHES, epochs=3, eval_step=eval_step, eval_data=[HELD_OUT], verbose=0
    )
    assert history.history == wanted.history
    reference = kfb.TrainState.from_keras(fitted)
    trees = ("params", "non_trainable", "opt_state")
    assert differing([getattr(state, t) for t in trees], [getattr(reference, t) for t in trees]) == []


def drops(epoch, rate):
    return rate * 0.5


CALLBACKS = {
    "schedule": lambda: [keras.callbacks.LearningRateScheduler(drops)],
    "early": lambda: [
        keras.callbacks.EarlyStopping("loss", min_delta=10.0, patience=1, restore_best_weights=True)
    ],
    "plateau": lambda: [keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, min_delta=10.0, patience=1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_do_what_they_do_in_fit(make):
    fitted = ROW.build()
    wanted = fitted.fit(**DATA, shuffle=False, epochs=5, callbacks=make())
    _, state, train_step = parts()
    state, history = kfb.train(state, train_step, BATCHES, epochs=5, callbacks=make(), verbose=0)
    assert history.history["loss"] == wanted.history["loss"]
    assert history.epoch == wanted.epoch
    reference = kfb.TrainState.from_keras(fitted)
    assert differing([state.params, state.opt_state], [reference.params, reference.opt_state]) == []


@pytest.mark.slow
@pytest.mark.parametrize("data", ["list", "grain"])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path, data):
    data = {"list": lambda: BATCHES, "grain": grain_rows}[data]
    _, state, train_step = parts()
    straight, _ = kfb.train(state, train_step, data(), epochs=3, verbose=0)
    for stop in (4, 10, 17, None):  # in an epoch, at its end, in the next, never
        _, state, train_step = parts()
        with kfb.CheckpointManager(tmp_path, save_every=4) as manager:
            resumed, _ = kfb.train(
                state, train_step, data(), epochs=3, steps=stop, manager=manager, verbose=0
            )
    assert int(resumed.step) == 30
    assert differing([getattr(resumed, t) for t in TREES], [getattr(straight, t) for t in TREES]) == []


def grain_rows():
    import grain

    rows = grain.MapDataset.range(80).seed(1).shuffle()
    return rows.map(lambda i: (ROW.x[i], ROW.y[i])).batch(contracts.SIZE).to_iter_dataset()


def test_an_iterator_takes_steps_and_several_at_a_time():
    model, state, _ = parts()
    single, _ = kfb.train(state, kfb.make_train_step(model, donate=False), iter(BATCHES), steps=8, verbose=0)
    pairs = [
        tuple(np.stack(leaves) for leaves in zip(*BATCHES[i : i + 2], strict=True)) for i in (0, 2, 4, 6)
    ]
    double = kfb.make_train_step(model, steps_per_call=2)
    state, history = kfb.train(state, double, iter(pairs), steps=8, verbose=0)
    assert differing([state.params, state.opt_state], [single.params, single.opt_state]) == []
    assert history.epoch == [0]


def test_a_step_of_ones_own_and_a_state_of_several():
    models = {"a": ROW.build(), "b": ROW.build()}
    state = kfb.TrainState.from_keras(models)

    def own_step(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch[0].mean()}

    state, history = kfb.train(state, own_step, BATCHES, epochs=1, verbose=0)
    assert int(state.step) == 10
    assert list(history.history) == ["loss"]
    with pytest.raises(kfb.StructureMismatchError, match="a state of 2 models"):
        kfb.train(state, own_step, BATCHES, epochs=1, callbacks=[keras.callbacks.TerminateOnNaN()])


@pytest.mark.slow
def test_the_best_step_is_known_by_what_was_evaluated(tmp_path):
    model, state, train_step = parts(keras.optimizers.SGD(0.5))
    options = {"eval_step": kfb.make_eval_step(model), "eval_data": [HELD_OUT], "verbose": 0}
    with kfb.CheckpointManager(tmp_path, max_to_keep=1, keep_best="val_loss", save_every=10) as manager:
        _, history = kfb.train(state, train_step, BATCHES, epochs=4, manager=manager, **options)
        losses = history.history["val_loss"]
        assert manager.best_step == 10 * (1 + int(np.argmin(losses)))
        assert set(manager.all_steps()) == {manager.best_step, 40}


def test_progress_is_keras_s(capsys):
    _, state, train_step = parts()
    kfb.train(state, train_step, BATCHES, epochs=2, verbose=2)
    printed = capsys.readouterr().out
    assert "Epoch 2/2" in printed
    assert "10/10" in printed
    assert "accuracy" in printed


WRONG = {
    "no end": ({"data": BATCHES}, "neither steps nor epochs"),
    "epochs of an iterator": ({"data": iter(BATCHES), "epochs": 2}, "epochs of an iterator"),
    "a number": ({"data": 3, "epochs": 2}, "got a int"),
    "nothing": ({"data": [], "epochs": 2}, "no batches"),
    "an iterator that ended": ({"data": iter([]), "steps": 2}, "no batches"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_explained(arguments, words):
    _, state, train_step = parts()
    with pytest.raises(kfb.StructureMismatchError, match=words):
        kfb.train(state, train_step, verbose=0, **arguments)


def test_data_that_can_not_be_resumed_is_said_before_training(tmp_path):
    _, state, train_step = parts()
    with (
        kfb.CheckpointManager(tmp_path) as manager,
        pytest.raises(kfb.StructureMismatchError, match="get_state"),
    ):
        kfb.train(state, train_step, iter(BATCHES), steps=3, manager=manager, verbose=0)


def train_for_ever(folder):
    """What SIGTERM comes to."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    if jax.process_count() > 1:  # Orbax saves arrays that all processes hold
        everywhere = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec())
        state = jax.tree.map(lambda leaf: placed(leaf, everywhere), state)

    def saying(state, batch):
        print("step", flush=True)
        return train_step(state, batch)

    batches = [(np.ones((4, 6), "float32"), np.ones((4, 2), "float32"))] * 3
    with kfb.CheckpointManager(folder, save_every=1_000_000) as manager:
        kfb.train(state, saying, batches, epochs=10**9, manager=manager, verbose=0)


@pytest.mark.slow
def test_sigterm_ends_with_a_checkpoint(tmp_path):
    assert terminated(train_for_ever, str(tmp_path)) == 0
    with kfb.CheckpointManager(tmp_path) as manager:
        assert manager.latest_step >= 1
    assert kfb.verify(tmp_path).ok


def train_distributed(folder):
    """What SIGTERM to one of several processes comes to: each says at which step it ended."""
    try:
        train_for_ever(folder)
    finally:
        with kfb.CheckpointManager(folder) as manager:
            print("ended", manager.latest_step, flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_under_jax_distributed_ends_all_after_one_step(tmp_path, count):
    processes = together(count, train_distributed, str(tmp_path / "run"))
    for process in processes:
        while process.stdout.readline() != "step\n":
            pass
    processes[-1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    ended = {line for output in outputs for line in output.splitlines() if line.startswith("ended")}
    assert len(ended) == 1
    assert kfb.verify(tmp_path / "run").ok


def test_ctrl_c_leaves_the_state_that_was_reached(tmp_path):
    _, state, train_step = parts()

    def interrupted():
        yield from BATCHES[:7]
        raise KeyboardInterrupt

    class Rows:
        def __iter__(self):
            return interrupted()

    with kfb.CheckpointManager(tmp_path, save_every=1000) as manager:
        with pytest.raises(KeyboardInterrupt):
            kfb.train(state, train_step, Rows(), epochs=2, manager=manager, verbose=0)
        assert manager.all_steps() == [7]
        assert int(state.step) == 7
        assert differing(manager.restore(state), state) == []
    state.assign_to(ROW.build())


def test_optax_trains_an_uncompiled_model():
    model = keras.models.clone_model(keras.Sequential([keras.Input((6,)), layers.Dense(3)]))
    parts = {"optimizer": optax.adam(0.1), "loss": "sparse_categorical_crossentropy"}
    state = kfb.TrainState.from_keras(model, optimizer=parts["optimizer"])
    early = keras.callbacks.EarlyStopping("loss", patience=100)
    _, history = kfb.train(
        state, kfb.make_train_step(model, **parts), BATCHES, epochs=2, callbacks=[early], verbose=0
    )
    assert len(history.history["loss"]) == 2
