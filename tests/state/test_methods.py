"""Methods of a model that `apply_fn` calls, as Linen does, and words that no call knows."""

import flax.linen as nn
import jax
import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_flax_bridge as kfb

X = np.ones((2, 3), "float32")


class Coder(keras.Model):
    """A model with parts that are called by themselves."""

    def __init__(self):
        super().__init__()
        self.encoder = layers.Dense(2, use_bias=False, kernel_initializer="ones")
        self.drop = layers.Dropout(0.5, seed=1)
        self.count = self.add_weight(shape=(), initializer="zeros", name="count", trainable=False)

    def encode(self, x, scale=1.0, training=False):
        self.count.assign_add(1.0)
        return self.drop(self.encoder(x) * scale, training=training)

    def sizes(self, x, *, axis):
        return ops.sum(self.encoder(x), axis)

    def call(self, x):
        return self.encode(x) - 1.0


@pytest.fixture(scope="module")
def coder():
    model = Coder()
    model(X)
    state = kfb.TrainState.from_keras(model, optimizer="sgd")
    variables = {"params": jax.tree.map(lambda p: 2 * p, state.params), "non_trainable": state.non_trainable}
    return model, state, variables


@pytest.mark.parametrize(
    "method",
    ["encode", Coder.encode, Coder().encode, lambda model, x, scale=1.0: model.encoder(x) * scale],
    ids=["name", "function", "of another", "own"],
)
def test_a_method_has_the_values_of_the_state(coder, method):
    model, state, variables = coder
    np.testing.assert_array_equal(state.apply_fn(variables, X, method=method), np.full((2, 2), 6.0))
    np.testing.assert_array_equal(state.apply_fn(variables, X, scale=2.0, method=method), np.full((2, 2), 12))
    np.testing.assert_array_equal(state.apply_fn(variables, X), np.full((2, 2), 5.0))
    np.testing.assert_array_equal(model.encoder.kernel, np.ones((3, 2)))


def test_a_method_updates_state_and_draws_random_numbers(coder):
    _, state, variables = coder
    one, updates = state.apply_fn(variables, X, method="encode", training=True, mutable=["non_trainable"])
    assert float(updates["non_trainable"]["count"]) == float(state.non_trainable["count"]) + 1
    seed = "seed_generator_state"
    assert int(updates["non_trainable"]["drop"][seed][1]) == int(state.non_trainable["drop"][seed][1]) + 1
    keys = {"dropout": jax.random.key(0)}
    again = [state.apply_fn(variables, X, method="encode", training=True, rngs=keys) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert one.shape == (2, 2)


REFUSED = {
    "no method": ({"method": "decode"}, r"method='decode'.*method of Coder"),
    "no function": ({"method": 3}, "method=3"),
    "a layer": ({"method": "encoder"}, "method='encoder'"),
    "another word": ({"method": "encode", "train": True}, "train for encode.*scale, training"),
    "no such argument": ({"method": "sizes", "training": True, "axis": 0}, "training for sizes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_does_not_take_is_refused(coder, case):
    _, state, variables = coder
    words, message = REFUSED[case]
    with pytest.raises(kfb.StructureMismatchError, match=message):
        state.apply_fn(variables, X, **words)


def test_of_several_models_each_has_its_methods(coder):
    model, _, _ = coder
    other = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    models = {"coder": model, "other": other}
    state = kfb.TrainState.from_keras(models, optimizer=dict.fromkeys(models, "sgd"))
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    assert state.apply_fn(variables, X, method="other").shape == (2, 1)
    np.testing.assert_array_equal(state.apply_fn(variables, X, method="coder.encode"), np.full((2, 2), 3.0))
    with pytest.raises(kfb.StructureMismatchError, match="'coderr'"):
        state.apply_fn(variables, X, method="coderr.encode")


# --- words


def sequential():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


def functional():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2)(inputs))


def to_apply_fn(model):
    state = kfb.TrainState.from_keras(model, optimizer="sgd")
    variables = {"params": state.params, "non_trainable": state.non_trainable}
    return lambda **words: state.apply_fn(variables, X, **words)


def to_nnx(model):
    module = kfb.ToNNX(model)
    return lambda **words: module(X, **words)


def to_linen(model):
    module = kfb.ToLinen(model)
    variables = module.from_keras_values()
    # Coder counts its calls, in inference too
    return lambda **words: module.apply(variables, X, mutable=["batch_stats"], **words)[0]


@pytest.mark.parametrize("build", [sequential, functional, Coder])
@pytest.mark.parametrize("door", [to_apply_fn, to_nnx, to_linen])
def test_unknown_words_are_an_error(build, door):
    model = build()
    model(X)
    call = door(model)
    assert call(training=False).shape == (2, 2)
    for word in ("layer", "initial_state", "attention_mask", "return_sequences", "train"):
        with pytest.raises((kfb.StructureMismatchError, TypeError), match=word):
            call(**{word: "enc"})
    if door is not to_linen:  # whose `apply` has both words
        with pytest.raises((kfb.StructureMismatchError, TypeError), match="capture_intermediates"):
            call(capture_intermediates=True)
    with pytest.raises((kfb.StructureMismatchError, TypeError, AttributeError), match=r"enc|method"):
        call(method="enc")


def test_linen_calls_a_function_of_the_module():
    module = kfb.ToLinen(sequential())
    variables = module.from_keras_values()
    assert isinstance(module, nn.Module)
    assert module.apply(variables, X, method=lambda own, x: own(x)).shape == (2, 2)
