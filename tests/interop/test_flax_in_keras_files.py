"""How a Flax module is given to a Keras layer, what files hold of it, and what is refused."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import keras_flax_bridge as kfb
from tests.support.cases import differing
from tests.support.flax_layers import same, weights
from tests.tables import flax_in_keras_rows as flax_rows
from tests.tables.flax_in_keras_rows import ROWS

# --- how modules are given, and what is refused


@keras.saving.register_keras_serializable("tests")
class Configured(nnx.Module):
    """A class that Keras knows."""

    def __init__(self, size, act=nnx.relu, *, rngs):
        self.size, self.act, self.linear = size, act, nnx.Linear(6, size, rngs=rngs)

    def __call__(self, x):
        return self.act(self.linear(x))

    def get_config(self):
        return {"size": self.size, "act": self.act}


@keras.saving.register_keras_serializable("tests")
class Fields(nn.Module):
    """A Linen module with fields of every kind that a file can hold."""

    inner: nn.Module
    sizes: tuple = (4,)
    dtype: object = None
    names: dict | None = None

    @nn.compact
    def __call__(self, x):
        x = self.inner(x)
        for size in self.sizes:
            x = nn.Dense(size, dtype=self.dtype)(x)
        return x

    def get_config(self):
        return {}


WAYS = {
    "an NNX instance with a config": lambda: kfb.NNXLayer(Configured(3, nnx.gelu, rngs=nnx.Rngs(0))),
    "an NNX class": lambda: kfb.NNXLayer(Configured, args=(3,), kwargs={"act": nnx.silu}, seed=1),
    "a class of Flax's": lambda: kfb.NNXLayer(nnx.Linear, args=(6, 3), kwargs={"param_dtype": jnp.bfloat16}),
    "a Linen instance": lambda: kfb.LinenLayer(
        Fields(nn.Dense(2), (3, 4), jnp.float32, {"a": [1, (2, None)]})
    ),
    "a Linen class": lambda: kfb.LinenLayer(nn.Dense, kwargs={"features": 3, "use_bias": False}),
}


@pytest.mark.parametrize("build", WAYS.values(), ids=WAYS)
def test_ways_to_give_a_module_survive_a_file(build, tmp_path):
    x = flax_rows.V
    model = keras.Sequential([keras.Input(x.shape[1:]), build()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    same(loaded(x), model(x))
    assert [v.dtype for v in loaded.weights] == [v.dtype for v in model.weights]


class Unknown(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class UnknownLinen(nn.Module):
    value: object = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


UNWRITABLE = {
    "an NNX instance": (lambda: kfb.NNXLayer(Unknown(nnx.Rngs(0))), "Unknown.*an instance"),
    "an NNX class": (lambda: kfb.NNXLayer(Unknown), "Unknown.*isn't registered"),
    "a Linen class": (lambda: kfb.LinenLayer(UnknownLinen), "UnknownLinen.*isn't registered"),
    "a Linen instance": (lambda: kfb.LinenLayer(UnknownLinen()), "UnknownLinen.*isn't registered"),
    "a lambda": (lambda: kfb.LinenLayer(lambda: nn.Dense(3)), "lambda.*isn't registered"),
    "an argument": (lambda: kfb.LinenLayer(nn.Dense(3, kernel_init=nn.initializers.constant(2.0))), "init"),
    "an array": (lambda: kfb.LinenLayer(Fields, args=(nn.Dense(3),), kwargs={"names": jnp.ones(2)}), "files"),
}


@pytest.mark.parametrize(("build", "words"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_no_file_can_hold_says_so_and_works_otherwise(build, words, tmp_path):
    model = keras.Sequential([keras.Input((6,)), build()])
    with pytest.raises(kfb.UnsupportedLayerError, match=words) as error:
        model.save(tmp_path / "model.keras")
    assert "register_keras_serializable" in str(error.value)
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "model.weights.h5")
    same(clone(flax_rows.V), model(flax_rows.V))
    kfb.ToLinen(model).init(jax.random.key(0), flax_rows.V)


WRONG = {
    "a number": (lambda: kfb.NNXLayer(3), "got a int"),
    "a Linen module": (lambda: kfb.NNXLayer(nn.Dense(2)), "LinenLayer"),
    "an NNX module": (lambda: kfb.LinenLayer(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "NNXLayer"),
    "an NNX class": (lambda: kfb.LinenLayer(nnx.Linear), "NNXLayer"),
    "a Keras layer": (lambda: kfb.LinenLayer(keras.layers.Dense(2)), "got a Dense"),
    "a function of something else": (lambda: kfb.NNXLayer(lambda: 3), "made a int"),
    "arguments for an instance": (lambda: kfb.LinenLayer(nn.Dense(2), args=(3,)), "args="),
    "no such method": (lambda: kfb.LinenLayer(nn.Dense(2), method="encode"), "'encode'"),
    "a word of Flax's": (lambda: kfb.NNXLayer(Unknown)(flax_rows.V, train=True), "training="),
}


@pytest.mark.parametrize(("act", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_module_is_explained(act, words):
    with pytest.raises(kfb.StructureMismatchError, match=words):
        act()


def test_another_module_s_file_is_explained(tmp_path):
    model = keras.Sequential([keras.Input((6,)), kfb.NNXLayer(Unknown)])
    model.save_weights(tmp_path / "a.weights.h5")
    other = keras.Sequential([keras.Input((6,)), kfb.NNXLayer(nnx.Linear, args=(6, 3))])
    before = weights(other)
    with pytest.raises(ValueError, match=r"linear\.kernel"):
        other.load_weights(tmp_path / "a.weights.h5")
    same(weights(other), before)


def test_a_module_that_gets_variables_in_a_call_is_explained():
    class Growing(nnx.Module):
        def __call__(self, x):
            self.seen = nnx.Variable(x)
            return x

    with pytest.raises(kfb.StructureMismatchError, match="unexpected  seen"):
        kfb.NNXLayer(Growing())(flax_rows.V)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an instance", "NNX BatchNorm, Dropout", "Linen BatchNorm, Dropout"])
def test_checkpoints(name, tmp_path):
    rows = {row.name: row for row in ROWS}
    instance = lambda: kfb.NNXLayer(flax_rows.Block(nnx.Rngs(0)))  # noqa: E731
    layer = rows[name].layer if name in rows else instance

    def build():
        model = keras.Sequential([keras.Input((6,)), layer(), keras.layers.Dense(2)])
        model.compile("adam", "mse")
        return model

    model, batch = build(), (flax_rows.V, np.zeros((8, 2), "float32"))
    state, step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    for _ in range(3):
        state, _ = step(state, batch)
    kfb.save(tmp_path / "state", state, model=model)
    again = kfb.restore(tmp_path / "state", kfb.TrainState.abstract(build))
    assert not differing(again.params, state.params)
    assert not differing(again.non_trainable, state.non_trainable)
    module = kfb.restore(tmp_path / "state", kfb.ToNNX(build()))
    state.assign_to(model)
    np.testing.assert_allclose(module(flax_rows.V), model(flax_rows.V), atol=1e-6)
    if name in rows:
        same(kfb.load_model(tmp_path / "state")(flax_rows.V), model(flax_rows.V))
    else:  # the checkpoint has no config, and says whose fault that is
        with pytest.raises(kfb.CheckpointError, match="Block: got an instance"):
            kfb.load_model(tmp_path / "state")


def test_a_module_in_a_model_s_attribute_is_trained_and_saved(tmp_path):
    """A bare `nnx.Module` there is frozen and lost, without a word."""

    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = [kfb.NNXLayer(Unknown(nnx.Rngs(0)))]

        def call(self, x):
            return self.inner[0](x)

    model = Owner()
    model.compile("sgd", "mse")
    before = weights(model.inner[0])
    model.fit(flax_rows.V, np.ones((8, 3)), verbose=0)
    assert all(np.any(a != b) for a, b in zip(weights(model.inner[0]), before, strict=True))
    model.save_weights(tmp_path / "a.weights.h5")
    other = Owner()
    other(flax_rows.V)
    other.load_weights(tmp_path / "a.weights.h5")
    same(other(flax_rows.V), model(flax_rows.V))
