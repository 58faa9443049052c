"""Checkpoints that other Orbax code wrote, read into everything; each is written here by that code."""

import functools
import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state
from keras import layers
from orbax.checkpoint import v1

import keras_flax_bridge as kfb
from tests.support.capabilities import needs, orbax
from tests.support.cases import TREES, differing
from tests.tables import contracts

X = np.random.default_rng(0).standard_normal((10, 6)).astype("float32")

# --- Keras's callback


def scaled():
    """Slots in an inner optimizer, half-full accumulators, averages; names given and automatic."""
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="block_2")(inputs)
    x = layers.Dense(4)(layers.Dropout(0.1)(x))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(4)(x)))
    inner = keras.optimizers.Adam(1e-3, use_ema=True, gradient_accumulation_steps=2)
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Halves(keras.Model):
    """Layers by attributes, a frozen one, one that Keras finds in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4)
        self.frozen = layers.Dense(4, trainable=False)
        self.rest = [layers.Dense(4), layers.Dense(3)]

    def call(self, x):
        return self.rest[1](self.rest[0](self.frozen(self.first(x))))

    def get_config(self):
        return {}


def halves():
    model = Halves()
    model(X[:1])
    model.compile("rmsprop", "mse", metrics=["mae"])
    return model


BUILDS = {"sequential": contracts.SEQUENTIAL.build, "scaled": scaled, "halves": halves}


def fitted(build, folder, **options):
    """The state that Keras's callback saved last, in a process in which others were built before."""
    layers.Dense(1), layers.Dropout(0.5), keras.optimizers.Adam(), build()
    model = build()
    y = np.arange(10) % 3 if model.loss != "mse" else np.ones((10, 3), "float32")
    saver = keras.callbacks.OrbaxCheckpoint(str(folder), **options)
    last = Last()
    model.fit(X, y, epochs=2, batch_size=4, verbose=0, callbacks=[saver, last])
    return last.state


class Last(keras.callbacks.Callback):
    """Keeps the state at the end of each epoch: `fit` changes the weights once more, to their averages."""

    def on_epoch_end(self, epoch, logs=None):
        self.state = kfb.TrainState.from_keras(self.model)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("sequential", marks=needs("OrbaxCheckpoint")),
        *(pytest.param(n, marks=[pytest.mark.slow, needs("OrbaxCheckpoint")]) for n in ("scaled", "halves")),
    ],
)
def keras_folder(request, tmp_path_factory):
    """A folder of Keras's callback, what builds its model, and the state that it saved."""
    folder, build = tmp_path_factory.mktemp("keras"), BUILDS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Orbax, about options that Keras leaves out
        return folder, build, fitted(build, folder)


@pytest.mark.slow
def test_keras_s_callback_reads_as_a_state_and_a_model(keras_folder):
    folder, build, wanted = keras_folder
    batch = X[:4], np.zeros((4, 3) if build is halves else 4, "float32")
    state = kfb.restore(folder, kfb.TrainState.abstract(build, batch=batch))
    assert differing({t: getattr(state, t) for t in TREES}, {t: getattr(wanted, t) for t in TREES}) == []
    assert state.step == wanted.step == 6
    other = build()
    assert kfb.restore(folder / "1", other) is other
    got = kfb.TrainState.from_keras(other, batch=batch)
    assert (
        differing({t: getattr(got, t) for t in TREES[:3]}, {t: getattr(wanted, t) for t in TREES[:3]}) == []
    )


@pytest.mark.slow
def test_keras_s_callback_reads_as_nnx_and_linen_and_loads(keras_folder):
    folder, build, wanted = keras_folder
    module = kfb.ToNNX(build())
    if build is halves:  # its config names no layers, so that another process would give others
        with pytest.raises(kfb.CheckpointError, match=r"restore\(path, model\)"):
            kfb.load_model(folder)
        return
    kfb.restore(folder, module)
    assert differing(nnx.to_pure_dict(nnx.state(module, nnx.Param)), wanted.params) == []
    variables = kfb.restore(folder, kfb.ToLinen(build()).init(jax.random.key(0), X[:4]))
    assert differing(variables["params"], wanted.params) == []
    loaded = kfb.load_model(folder)
    got = kfb.TrainState.from_keras(loaded)
    assert (
        differing({t: getattr(got, t) for t in TREES[:3]}, {t: getattr(wanted, t) for t in TREES[:3]}) == []
    )


@pytest.mark.slow
@needs("OrbaxCheckpoint")
@pytest.mark.filterwarnings("ignore")
def test_weights_alone_go_into_the_model_that_they_are_of(tmp_path):
    wanted = fitted(scaled, tmp_path, save_weights_only=True)
    other = scaled()
    kfb.restore(tmp_path, other, include=["params", "non_trainable"])
    assert differing(kfb.TrainState.from_keras(other).params, wanted.params) == []
    with pytest.raises(kfb.CheckpointError, match=r"kfb\.restore\(path, model\)"):
        kfb.restore(tmp_path, {"params": {}, "x": np.ones(1)})


@pytest.mark.slow
@needs("OrbaxCheckpoint")
@pytest.mark.filterwarnings("ignore")
def test_another_model_s_variables_are_listed_and_none_is_assigned(tmp_path):
    fitted(scaled, tmp_path)
    other = contracts.SEQUENTIAL.build()
    before = other.get_weights()
    with pytest.raises(kfb.StructureMismatchError, match="block_2/kernel") as caught:
        kfb.restore(tmp_path, other)
    assert caught.value.missing
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


def test_names_that_a_user_gave_are_not_taken_for_automatic_ones(tmp_path):
    def build(second):
        inner = [layers.Dense(2, name="block_1"), layers.Dense(2, name=second)]
        model = keras.Sequential([keras.Input((6,)), layers.Dense(2), *inner])
        model.compile("sgd", "mse")
        return model

    orbax("save")(tmp_path / "one" / "0", build("block_3").get_state_tree())
    with pytest.raises(kfb.StructureMismatchError, match="missing     params/block_2/kernel"):
        kfb.restore(tmp_path / "one", build("block_2"))


# --- Flax


class Linen(nn.Module):
    """Weights and moving statistics."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


@functools.cache
def variables():
    return Linen().init(jax.random.key(0), X)


def flax_state(fill=1.0):
    tx = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    state = train_state.TrainState.create(apply_fn=Linen().apply, params=variables()["params"], tx=tx)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, fill), state.params)
    return state.apply_gradients(grads=grads)


def standard(path, tree):
    with v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def pytree(path, tree):
    v0.PyTreeCheckpointer().save(path, tree)


def managed(path, tree):
    with v0.CheckpointManager(path) as manager:
        manager.save(7, args=v0.args.StandardSave(tree))


def composed(path, tree):
    with v0.CheckpointManager(path) as manager:
        manager.save(
            7, args=v0.args.Composite(ours=v0.args.StandardSave(tree), notes=v0.args.JsonSave({"a": 1}))
        )


def padded(path, tree):
    options = v0.CheckpointManagerOptions(step_format_fixed_length=8)
    with v0.CheckpointManager(path, options=options) as manager:
        manager.save(7, args=v0.args.StandardSave(tree))


WRITERS = [standard, pytree, managed, composed, padded, orbax("save")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", WRITERS)
def test_a_flax_state_comes_back_with_optax_s_own_types(tmp_path, write):
    state = flax_state()
    write(tmp_path / "one", state)
    back = kfb.restore(tmp_path / "one", flax_state(fill=2.0))
    assert differing(back, state) == []
    assert type(back.opt_state[1][0]) is type(state.opt_state[1][0])
    abstract = jax.eval_shape(flax_state)  # nothing is typed by hand, nothing allocated
    assert differing(kfb.restore(tmp_path / "one", abstract).opt_state, state.opt_state) == []
    weights = kfb.restore(tmp_path / "one", {"params": variables()["params"]})
    assert differing(weights["params"], state.params) == []


@pytest.mark.filterwarnings("ignore")
def test_linen_variables_come_back(tmp_path):
    standard(tmp_path / "one", variables())
    like = jax.tree.map(jnp.zeros_like, variables())
    assert differing(kfb.restore(tmp_path / "one", like), variables()) == []
    with pytest.raises(kfb.StructureMismatchError, match="unexpected  batch_stats/BatchNorm_0/mean"):
        kfb.restore(tmp_path / "one", {"params": like["params"]})


class Module(nnx.Module):
    """Weights in a list, moving statistics, a key that counts."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.bn, self.drop = nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)


def boxed(module):
    """As Flax before 0.11 wrote it: each leaf below ``value``."""
    return jax.tree.map(lambda leaf: {"value": leaf}, plain(module))


def plain(module):
    return nnx.to_pure_dict(jax.tree.map(_data, nnx.state(module)))


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [nnx.state, boxed, plain])
def test_nnx_states_come_back(tmp_path, form):
    module = Module(0)
    standard(tmp_path / "one", form(module))
    other = Module(1)
    assert kfb.restore(tmp_path / "one", other) is other
    assert differing(plain(other), plain(module)) == []
    state = kfb.restore(tmp_path / "one", nnx.state(Module(2)))
    assert isinstance(state, nnx.State)
    nnx.update(other := Module(3), state)
    assert differing(plain(other), plain(module)) == []
    pure = kfb.restore(tmp_path / "one", jax.tree.map(jnp.zeros_like, plain(module)))
    assert differing(pure, plain(module)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ocdbt", [True, False])
def test_keys_of_another_implementation_are_not_taken(tmp_path, ocdbt):
    tree = {"a": {"b": jax.random.split(jax.random.key(3, impl="rbg"), 2)}, "c": jax.random.key(1)}
    with v0.Checkpointer(v0.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as checkpointer:
        checkpointer.save(tmp_path / "one", tree)
    back = kfb.restore(tmp_path / "one", jax.eval_shape(lambda: tree))
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), back, tree))
    other = {
        **tree,
        "a": {"b": jax.random.split(jax.random.key(3, impl="unsafe_rbg"), 2)},
    }  # of the same shape
    with pytest.raises(kfb.StructureMismatchError, match=r"a/b .*impl='rbg', .*impl='unsafe_rbg'"):
        kfb.restore(tmp_path / "one", other)
    bits = jax.tree.map(jax.random.key_data, tree)
    back = kfb.restore(tmp_path / "one", jax.tree.map(jnp.zeros_like, bits))
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.tree.map(_data, back), bits))
    assert kfb.verify(tmp_path / "one").damaged == {}


def test_our_own_takes_an_nnx_state_too(tmp_path):
    module = Module(0)
    kfb.save(tmp_path / "one", nnx.state(module))
    assert differing(plain(kfb.restore(tmp_path / "one", Module(1))), plain(module)) == []
    state = kfb.restore(tmp_path / "one", nnx.state(Module(2)))
    assert differing(nnx.to_pure_dict(state)["layers"], plain(module)["layers"]) == []


# --- what can't be read


@pytest.mark.filterwarnings("ignore")
def test_several_trees_are_named(tmp_path):
    v1.save_checkpointables(tmp_path / "two", {"a": {"x": jnp.ones(2)}, "b": {"x": jnp.zeros(2)}})
    with pytest.raises(kfb.StructureMismatchError, match="unexpected  a/x"):
        kfb.restore(tmp_path / "two", {"x": jnp.ones(2)})
    assert float(kfb.restore(tmp_path / "two" / "a", {"x": jnp.zeros(2)})["x"][0]) == 1


@pytest.mark.parametrize("fill", [None, "notes.txt", "model.orbax-checkpoint-tmp"])
def test_a_folder_that_is_no_checkpoint(tmp_path, fill):
    if fill:
        (tmp_path / fill).mkdir()
    with pytest.raises(kfb.CheckpointError, match="no checkpoint"):
        kfb.restore(tmp_path, {"x": jnp.ones(2)})
