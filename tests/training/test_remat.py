"""`make_train_step(remat=)`: the same numbers, and what is inside of a checkpoint is computed again."""

import jax
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.training.remat import chosen

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(16, 5, 4)).astype("float32")
BATCH = X, X[:, 0, :1]


class Block(layers.Layer):
    """Attention, dropout and a loss of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
        self.drop = layers.Dropout(0.2)
        self.dense = layers.Dense(4, "gelu", activity_regularizer="l2")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.dense.build(shape)

    def call(self, x, training=False):
        x = x + self.drop(self.attention(x, x, training=training), training=training)
        self.add_loss(keras.ops.mean(x**2) * 0.1)
        return self.dense(x)


def build():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    x = Block(name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = Block(name="second")(x)
    model = keras.Model(inputs, layers.Dense(1, name="head")(layers.GlobalAveragePooling1D()(x)))
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    return model


SAVEABLE = jax.checkpoint_policies.dots_saveable
CHOICES = {
    "all": (True, 1),
    "names": (["first", "second"], 2),
    "pattern": (["first|norm"], 2),
    "inside": (["first/attention"], 1),
    "policy": ({"first": SAVEABLE, "second": None}, 2),
}


def checkpoints(step, state):
    """The equations of `jax.checkpoint` in the traced step, with their policies."""
    return [e.params["policy"] for e in _equations(jax.make_jaxpr(step)(state, BATCH).jaxpr) if _is_remat(e)]


def _is_remat(equation):
    return "policy" in equation.params and "prevent_cse" in equation.params


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from _equations(getattr(inner, "jaxpr", inner))


def trained(**options):
    model = build()
    state, step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, **options)
    for _ in range(3):
        state, logs = step(state, BATCH)
    return state, logs


@pytest.fixture(scope="module")
def plain():
    return trained()


@pytest.mark.parametrize("choice", CHOICES)
def test_numbers_are_those_without(choice, plain):
    state, logs = trained(remat=CHOICES[choice][0])
    # XLA may fuse what is computed again otherwise than what it would have kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), logs, plain[1])
    for tree in ("params", "metrics", "opt_state"):
        got, wanted = getattr(state, tree), getattr(plain[0], tree)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)
    seeds, wanted = (s.non_trainable["first"] for s in (state, plain[0]))
    jax.tree.map(np.testing.assert_array_equal, seeds, wanted)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_traced_step_has_the_checkpoints(choice):
    remat, count = CHOICES[choice]
    model = build()
    state = kfb.TrainState.from_keras(model)
    assert checkpoints(kfb.make_train_step(model, jit=False), state) == []
    found = checkpoints(kfb.make_train_step(model, jit=False, remat=remat), state)
    assert len(found) >= count
    assert (SAVEABLE in found) == (choice == "policy")
    assert "call" not in vars(model)
    assert "call" not in vars(model.get_layer("first"))


def deep():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,))])
    for i in range(6):
        model.add(keras.Sequential([layers.Dense(256, "gelu"), layers.Dense(16, "tanh")], name=f"block_{i}"))
    model.compile("sgd", "mse")
    return model


def kept(remat):
    """The bytes that the forward pass keeps for the backward pass."""
    model = deep()
    x = np.ones((32, 16), "float32")

    def loss(values):
        with keras_internals.rematerialized(chosen(model, remat)):
            return keras.ops.mean(model.stateless_call(values, [], x, training=True)[0] ** 2)

    _, back = jax.vjp(loss, [variable.value for variable in model.trainable_variables])
    return sum(leaf.nbytes for leaf in jax.tree.leaves(back))


def test_the_forward_pass_keeps_less():
    # the inputs of blocks alone: 16 of the hundreds of numbers in a row
    assert kept([r"block_\d"]) < 0.5 * kept(None)
    assert kept({r"block_\d": jax.checkpoint_policies.everything_saveable}) > 0.9 * kept(None)


@pytest.mark.parametrize(
    ("remat", "said"),
    [
        (["frist"], "'frist', which is no"),
        (["("], "regular expression"),
        (3, "remat"),
        ([3], "remat"),
    ],
)
def test_a_wrong_argument_is_named(remat, said):
    model = build()
    with pytest.raises(StructureMismatchError, match=said):
        kfb.make_train_step(model, remat=remat)(kfb.TrainState.from_keras(model), BATCH)
