"""What callbacks remember is stored beside a state and comes back as it was; nothing else of them does."""

import collections
import math

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax.training import train_state

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import callback_memory, orbax_io
from keras_flax_bridge.checkpoint.callback_memory import Memory, put_back, remembered
from keras_flax_bridge.tree.untrusted.schema import Malformed


class Remembering(keras.callbacks.Callback):
    """A callback with an attribute of each kind."""

    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)


KINDS = {
    "none": None,
    "flag": True,
    "whole": 7,
    "real": 0.1,
    "infinite": -math.inf,
    "not a number": math.nan,
    "list": [1, [2.5, None]],
    "tuple": (1, ("a", 2)),
    "dict": {"loss": [1.0, 2.0], 3: "x"},
    "set": {1, 2},
    "deque": collections.deque([1, 2]),
    "scalar": np.float32(0.3),
    "array": np.arange(6, dtype="int16").reshape(2, 3),
    "empty": np.zeros((0, 2)),
    "jax": jnp.arange(3.0, dtype="bfloat16"),
    "weights": [np.ones((2, 2), "float32"), np.zeros(3, "float64")],
}


def saved(folder, callbacks, before=None):
    state = train_state.TrainState.create(apply_fn=None, params={"a": np.zeros(2)}, tx=optax.identity())
    with kfb.CheckpointManager(folder) as manager:
        manager.save(state, callbacks=remembered(callbacks, before))
    return orbax_io.memory(folder / "0")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_value_comes_back_as_it_was(tmp_path, kind):
    value = KINDS[kind]
    memory = saved(tmp_path, [Remembering(it=value)])
    other = Remembering(it=None)
    put_back([other], memory, "here")
    assert type(other.it) is type(value)
    assert plain(other.it) == plain(value)


def plain(value):
    """A value in a form that compares bit for bit."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if hasattr(value, "dtype"):
        return str(value.dtype), np.shape(value), np.asarray(value).tobytes()
    return repr(value)


def test_settings_paths_and_objects_are_not_stored(tmp_path):
    own = Remembering(path="somewhere", folder=tmp_path, function=print, model_of=keras.Sequential(), n=1)
    assert set(remembered([own]).content["Remembering/0"]) == {"n"}


def test_what_has_not_changed_since_the_beginning_is_left_to_the_script(tmp_path):
    stopping = keras.callbacks.EarlyStopping(patience=3)
    stopping.on_train_begin()
    before = remembered([stopping])
    stopping.wait = 2
    memory = saved(tmp_path, [stopping], before)
    other = keras.callbacks.EarlyStopping(patience=9)
    other.on_train_begin()
    put_back([other], memory, "here")
    assert (other.wait, other.patience) == (2, 9)


def test_a_file_sets_no_attribute_that_a_callback_lacks_and_no_text():
    own = Remembering(path="mine", n=1)
    stored = {"Remembering/0": {"path": "theirs", "unknown": 3, "n": "text", "__class__": 3}}
    put_back([own], Memory(stored), "here")
    assert {"path": "mine", "n": 1}.items() <= vars(own).items()
    assert not hasattr(own, "unknown")


def test_callbacks_of_one_class_are_told_apart_by_their_order(tmp_path):
    memory = saved(tmp_path, [Remembering(n=1), Remembering(n=2)])
    others = [Remembering(n=0), Remembering(n=0), Remembering(n=0)]
    put_back(others, memory, "here")
    assert [other.n for other in others] == [1, 2, 0]


def test_a_callback_with_get_state_is_asked(tmp_path):
    class Own(keras.callbacks.Callback):
        state = 0

        def get_state(self):
            return {"state": self.state}

        def set_state(self, state):
            self.state = state["state"]

    own, other = Own(), Own()
    own.state = (1, 2)
    put_back([other], saved(tmp_path, [own]), "here")
    assert other.state == (1, 2)


def test_rows_of_a_csv_file_come_back(tmp_path):
    def logger(mode):
        made = keras.callbacks.CSVLogger(tmp_path / "log.csv", append=mode)
        made.set_model(keras.Sequential())
        made.on_train_begin()
        return made

    first = logger(False)
    first.on_epoch_end(0, {"loss": 1.0})
    memory = saved(tmp_path / "run", [first])
    first.on_epoch_end(1, {"loss": 2.0})  # after the checkpoint: lost, and trained again
    second = logger(False)
    put_back([second], memory, "here")
    second.on_epoch_end(1, {"loss": 3.0})
    second.on_train_end()
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,loss,val_loss", "0,1.0,NA", "1,3.0,NA"]


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"A/0": 1},
        {"A/0": {"n": {"array": 0}}},
        {"A/0": {"n": {"float": "1"}}},
        {"A/0": {"n": {"dict": [1]}}},
        {"A/0": {"n": {"tuple": [], "set": []}}},
        {"A/0": {"n": {"open": []}}},
        {"A/0": {"n": {"tuple": 3}}},
    ],
)
def test_a_malformed_memory_is_refused(content):
    with pytest.raises(Malformed, match="callbacks"):
        callback_memory.check({"content": content, "arrays": []}, "callbacks")


def test_a_memory_that_a_callback_cannot_take_is_an_error():
    stored = {"Remembering/0": {"n": {"set": [[1]]}}}
    with pytest.raises(kfb.CorruptCheckpointError, match="callbacks/Remembering/0"):
        put_back([Remembering(n=1)], Memory(stored), "here")


def test_damaged_arrays_are_found(tmp_path):
    saved(tmp_path, [Remembering(weights=np.arange(4000.0))])
    assert kfb.verify(tmp_path).ok
    for file in (tmp_path / "0" / "callbacks").rglob("*"):
        if file.is_file() and file.stat().st_size >= 32000:
            file.write_bytes(file.read_bytes().replace(np.float64(77).tobytes(), np.float64(78).tobytes()))
    assert "callbacks" in kfb.verify(tmp_path).damaged
    with pytest.raises(kfb.CorruptCheckpointError):
        orbax_io.memory(tmp_path / "0")
