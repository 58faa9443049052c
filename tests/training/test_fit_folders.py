"""Several fits on one folder, files of callbacks, folders that another loop wrote."""

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support.broken_fits import Broken, BrokenError
from tests.support.cases import differing, values
from tests.tables.callbacks import DATA, X, Y, small
from tests.training.test_fit_lost import held
from tests.training.test_fit_resumed import (
    KINDS,
    assert_equal,
    broken_off,
    new_process,
    reference,
    run,
    seeded,
    stopping,
    unbroken,
)

__all__ = ["new_process"]  # a fixture


# --- phases


def two_phases(folder, *broken, fit=kfb.fit, epochs=(2, 3), callbacks=lambda: []):
    """Train the head, then all of it with another optimizer."""
    model = seeded()
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(0.05), "mse")
    more = {"checkpoint": folder} if fit is kfb.fit else {}
    do = fit if fit is kfb.fit else lambda model, **options: model.fit(**options)
    first = do(model, **{**DATA, "epochs": epochs[0]}, callbacks=[*callbacks(), *broken], **more)
    model.layers[0].trainable = True
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    second = do(model, **{**DATA, "epochs": epochs[1]}, callbacks=[*callbacks(), *broken], **more)
    return model, first.history, second.history


def same_phases(found, wanted):
    assert differing(values(found[0]), values(wanted[0])) == []
    assert found[1:] == wanted[1:]


@pytest.mark.every(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 6, 7, 9, 12, 15])
def test_two_phases_on_one_folder(tmp_path, new_process, at):
    wanted = two_phases(None, fit=None)
    with pytest.raises(BrokenError):
        two_phases(tmp_path, Broken("on_train_batch_end", at))
    for _ in range(2):
        new_process()
        same_phases(two_phases(tmp_path), wanted)


@pytest.mark.slow
def test_a_phase_that_early_stopping_ended_is_passed_over(tmp_path, new_process):
    given = {"callbacks": lambda: [stopping()], "epochs": (5, 5)}
    first = two_phases(tmp_path, **given)
    same_phases(first, two_phases(None, fit=None, **given))
    new_process()
    same_phases(two_phases(tmp_path, **given), first)


@pytest.mark.slow
def test_more_epochs_of_an_earlier_phase_are_refused(tmp_path, new_process):
    two_phases(tmp_path)
    new_process()
    with pytest.raises(kfb.ArgumentError, match="3 epochs, which are not trained yet, and a fit 2"):
        two_phases(tmp_path, epochs=(3, 3))


# --- files


@pytest.mark.slow
def test_the_best_file_stays_the_best(tmp_path, new_process):
    def saver():
        return keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5",
            monitor="loss",
            mode="max",
            save_best_only=True,
            save_weights_only=True,
        )

    given = {"callbacks": [saver(), Broken("on_train_batch_end", 5)]}
    with pytest.raises(BrokenError):
        run(tmp_path / "run", **given)
    best = (tmp_path / "best.weights.h5").read_bytes()
    run(tmp_path / "run", callbacks=[saver()])
    assert (tmp_path / "best.weights.h5").read_bytes() == best
    new_process()
    run(tmp_path / "run", callbacks=[saver()], epochs=5)
    assert (tmp_path / "best.weights.h5").read_bytes() == best


# --- folders of others


@pytest.mark.slow
def test_a_folder_of_the_callback_is_resumed(tmp_path):
    saver = kfb.callbacks.TrainStateCheckpoint(tmp_path, save_freq=1)
    with pytest.raises(BrokenError):
        unbroken(callbacks=[saver, Broken("on_train_batch_end", 5)])
    np.random.seed(8)
    assert_equal(run(tmp_path), reference("arrays"))


@pytest.mark.slow
def test_the_callback_resumes_a_folder_of_fit(tmp_path):
    broken_off(tmp_path)
    np.random.seed(8)
    model, history = unbroken(callbacks=[kfb.callbacks.TrainStateCheckpoint(tmp_path)])
    assert_equal((model, history), reference("arrays"))


@pytest.mark.slow
def test_the_callback_and_fit_on_one_folder(tmp_path):
    savers = lambda: [kfb.callbacks.TrainStateCheckpoint(tmp_path / "b", save_freq=2)]  # noqa: E731
    with pytest.raises(BrokenError):
        run(tmp_path / "a", callbacks=[*savers(), Broken("on_train_batch_end", 5)])
    assert_equal(run(tmp_path / "a", callbacks=savers()), reference("arrays"))


def batches():
    return [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 24, 8)]


def train(folder, epochs, **options):
    model = seeded()
    with kfb.CheckpointManager(folder) as manager:
        state = kfb.TrainState.from_keras(model)
        step = kfb.make_train_step(model)
        return kfb.train(state, step, batches(), epochs=epochs, manager=manager, verbose=0, **options)


@pytest.mark.slow
def test_a_folder_of_train_is_resumed_by_fit(tmp_path):
    train(tmp_path, 1)
    model, _ = run(tmp_path, KINDS["in order"])
    assert differing(held(model), held(reference("in order")[0])) == []


@pytest.mark.slow
def test_a_folder_of_fit_is_resumed_by_train(tmp_path):
    run(tmp_path, KINDS["in order"], epochs=1)
    state, _ = train(tmp_path, 3)
    model = seeded()
    state.assign_to(model)
    assert differing(held(model), held(reference("in order")[0])) == []


@pytest.mark.slow
def test_a_folder_with_other_checkpoints_is_refused(tmp_path):
    kfb.save(tmp_path / "3", kfb.TrainState.from_keras(small()))
    with pytest.raises(kfb.CheckpointError, match="not written by fit"):
        run(tmp_path)
