"""Files that Keras wrote, read into everything."""

import jax
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from tests.support.cases import differing
from tests.support.models import round_trips as models
from tests.tables import contracts
from tests.tables import round_trips as table

BATCH = next(contracts.SEQUENTIAL.batches())


@pytest.fixture(scope="module")
def fitted():
    model = contracts.SEQUENTIAL.build()
    for batch in contracts.SEQUENTIAL.batches(3):
        model.train_on_batch(*batch)
    return model


@pytest.fixture
def file(fitted, tmp_path):
    fitted.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.slow
def test_a_keras_file_reads_as_everything(fitted, file):
    build, wanted = contracts.SEQUENTIAL.build, kfb.TrainState.from_keras(fitted)
    layers.Dropout(0.5)  # moves Keras's counters of names
    state = kfb.restore(file, kfb.TrainState.abstract(build))
    trees = ("step", "params", "non_trainable", "opt_state")
    lost = differing({t: getattr(state, t) for t in trees}, {t: getattr(wanted, t) for t in trees})
    assert lost == ["non_trainable/dropout/seed_generator_state"]  # Keras writes no seeds
    other = build()
    other.optimizer.build(other.trainable_variables)
    kfb.restore(file, other)
    assert differing(kfb.TrainState.from_keras(other).opt_state, wanted.opt_state) == []
    assert (
        differing(
            nnx.to_pure_dict(nnx.state(kfb.restore(file, kfb.ToNNX(build())), nnx.Param)), wanted.params
        )
        == []
    )
    linen = kfb.ToLinen(build())
    variables = kfb.restore(file, linen.init(jax.random.key(0), BATCH[0]))
    assert differing(variables["params"], wanted.params) == []
    assert differing(kfb.TrainState.from_keras(kfb.load_model(file)).params, wanted.params) == []


@pytest.mark.slow
def test_a_weights_file_fills_its_model(fitted, tmp_path):
    fitted.save_weights(tmp_path / "w.weights.h5")
    other = contracts.SEQUENTIAL.build()
    assert kfb.restore(tmp_path / "w.weights.h5", other) is other
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), fitted.get_weights(), strict=True))


def wider():
    return keras.Sequential([keras.Input((6,)), layers.Dense(7), layers.Dense(3, name="head")])


def test_a_weights_file_of_another_model_assigns_nothing(fitted, tmp_path):
    fitted.save_weights(tmp_path / "w.weights.h5")
    other = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(4)])
    before = other.get_weights()
    with pytest.raises(kfb.CheckpointError, match=r"w\.weights\.h5"):
        kfb.restore(tmp_path / "w.weights.h5", other)
    assert all(np.array_equal(a, b) for a, b in zip(other.get_weights(), before, strict=True))


@pytest.mark.slow
def test_misuse_is_explained(fitted, file, tmp_path):
    fitted.save_weights(tmp_path / "w.weights.h5")
    acts = {
        "5 unexpected": lambda: kfb.restore(file, wider()),
        "a built keras.Model": lambda: kfb.restore(tmp_path / "w.weights.h5", {"a": 1}),
        "weights alone": lambda: kfb.load_model(tmp_path / "w.weights.h5"),
        "a root folder": lambda: kfb.verify(file, step=3),
        "without data=": lambda: kfb.restore(file, kfb.TrainState.from_keras(fitted), data=iter([])),
    }
    for words, act in acts.items():
        with pytest.raises(kfb.BridgeError, match=words):
            act()


def test_code_in_a_keras_file_is_not_run(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x), layers.Dense(1)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(kfb.CheckpointError, match="Lambda"):
        kfb.load_model(tmp_path / "code.keras")


def test_slots_of_other_weights_do_not_begin_anew(tmp_path):
    """A config does not say that a single weight is frozen; Keras warns, and goes on with new slots."""
    model, _ = table.trained(table.Row("frozen", models.frozen))
    model.save(tmp_path / "model.keras")
    with pytest.raises(kfb.StructureMismatchError, match="which single weights are frozen"):
        kfb.load_model(tmp_path / "model.keras")
    for like in (dict, kfb.TrainState.from_keras(models.plain())):
        with pytest.raises(kfb.StructureMismatchError):
            kfb.restore(tmp_path / "model.keras", like)
    assert cli.main(["convert", str(tmp_path / "model.keras"), str(tmp_path / "tree")]) == 2
    module = kfb.restore(tmp_path / "model.keras", kfb.ToNNX(models.plain()))
    np.testing.assert_array_equal(module(table.VECTORS), model(table.VECTORS))
