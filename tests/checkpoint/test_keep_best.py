"""`keep_best`: a name that never comes is an error when logs are saved, before anything is written."""

import jax.numpy as jnp
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb

TRAINED, EVALUATED = {"loss": 1.0, "mae": 2.0}, {"loss": 1.0, "val_loss": 2.0}

# the name, the first logs that lack it, and what is said
MISSING = {
    "training": (
        ("los", "min"),
        TRAINED,
        {},
        "'loss', 'mae', expected 'los'. Make the manager with keep_best='loss'",
    ),
    "evaluation": (("val_los", "min"), EVALUATED, {}, "keep_best='val_loss'"),
    "no evaluation": ("val_loss", TRAINED, {"evaluated": True}, "'loss', 'mae', expected 'val_loss'"),
    "no name alike": (("score", "max"), TRAINED, {}, "one of these names"),
    "no number": (("words", "max"), {"words": "many"}, {}, "logs without numbers"),
    "several values": (("f1", "max"), {"loss": 1.0, "f1": np.ones(3)}, {}, "numbers 'loss', expected 'f1'"),
}


@pytest.fixture
def state():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return kfb.TrainState.from_keras(model)


def at(state, step):
    return state.replace(step=jnp.asarray(step, "int32"))


@pytest.mark.parametrize("case", MISSING)
def test_a_name_that_the_logs_lack_is_an_error(case, state, tmp_path):
    name, logs, options, words = MISSING[case]
    with kfb.CheckpointManager(tmp_path, keep_best=name) as manager:
        for _ in range(2):  # what could not be saved is still due
            with pytest.raises(kfb.ArgumentError, match=words):
                manager.save(at(state, 1), logs=logs, **options)
        assert manager.all_steps() == []
        assert manager.save(at(state, 1))  # without logs it isn't ranked
        assert manager.save(at(state, 2), logs={})
        manager.wait()
        assert manager.best_step is None


def test_logs_of_training_need_not_have_the_evaluation(state, tmp_path):
    with kfb.CheckpointManager(tmp_path, keep_best="val_loss", max_to_keep=None) as manager:
        for step, logs in enumerate([TRAINED, EVALUATED, TRAINED], 1):
            manager.save(at(state, step), logs=logs)
        manager.wait()
        assert (manager.all_steps(), manager.best_step) == ([1, 2, 3], 2)


def test_a_name_that_came_once_may_be_missing(state, tmp_path):
    rare = {**TRAINED, "score": 3.0}
    with kfb.CheckpointManager(tmp_path, keep_best=("score", "max"), max_to_keep=None) as manager:
        for step, logs in enumerate([rare, TRAINED], 1):
            manager.save(at(state, step), logs=logs)
    with kfb.CheckpointManager(tmp_path, keep_best=("score", "max"), max_to_keep=None) as manager:
        manager.save(at(manager.restore(state), 3), logs=TRAINED)  # in another process too
        manager.wait()
        assert (manager.all_steps(), manager.best_step) == ([1, 2, 3], 1)


def test_nested_logs_are_ranked(state, tmp_path):
    with kfb.CheckpointManager(tmp_path, keep_best="mae") as manager:
        for step, mae in enumerate([3.0, 1.0, 2.0], 1):
            manager.save(at(state, step), logs={"loss": 1.0, "compile_metrics": {"mae": mae}})
        manager.wait()
        assert manager.best_step == 2
