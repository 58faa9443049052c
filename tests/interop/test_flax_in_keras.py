"""Flax modules as Keras layers: the numbers of the plain module, and all of Keras's tools."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import differing, parameters, values
from tests.tables import flax_in_keras_rows as flax_rows
from tests.tables.flax_in_keras_rows import ROWS, Plain, linen_call

STEPS = 3


@pytest.fixture(params=parameters(ROWS))
def row(request):
    return request.param


def same(got, wanted):
    """The same bits, shapes and dtypes."""
    got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in wanted]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a, "float32"), np.asarray(b, "float32"))


def weights(layer):
    return [np.asarray(variable.value) for variable in layer.weights]


def zeros(model, x):
    """Targets; without a call, which some modules count."""
    return np.zeros((len(x[0]), *model.output_shape[1:]), "float32")


def fitted(model, row, epochs=STEPS):
    """The model after as many steps on the row's inputs."""
    y = zeros(model, row.x)
    model.fit(row.x, y, batch_size=len(y), epochs=epochs, shuffle=False, verbose=0)
    return model


# --- every row through every check


def outputs(row):
    """Inference, training twice, and the state that each leaves, as of the plain module."""
    layer = row.layer()
    layer.build_from_config(config_of(row)) if row.is_linen else None
    plain = Plain(row, layer)
    same(weights(layer), plain.state())
    for training in (False, True, True, False):
        same(layer(*row.args, **row.named, training=training), plain.call(training))
        same(weights(layer), plain.state())


def config_of(row):
    """What the layer's build config is after a call on the row's inputs."""
    other = row.layer()
    other(*row.args, **row.named)
    return other.get_build_config()


def gradients(row):
    """`fit` moves weights, statistics and keys as a loop in plain Flax does."""
    model = row.model()
    plain = Plain(row, model.get_layer("flax"))
    fitted(model, row)
    tx = optax.sgd(0.1, momentum=0.9)
    train = linen_loop if row.is_linen else nnx_loop
    train(plain, tx)
    for got, wanted in zip(weights(model.get_layer("flax")), plain.state(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def nnx_loop(plain, tx):
    optimizer = nnx.Optimizer(plain.module, tx, wrt=nnx.Param)
    plain.module.train()

    @nnx.jit
    def step(module, optimizer):
        row = plain.row
        call = lambda module: jnp.mean(module(*row.args, **row.named, **row.flags(True)) ** 2)  # noqa: E731
        optimizer.update(module, nnx.grad(call)(module))

    for _ in range(STEPS):
        step(plain.module, optimizer)


def linen_loop(plain, tx):
    opt_state = tx.init(plain.split()[0])
    for _ in range(STEPS):
        params, others = plain.split()

        def loss(params, others=others):
            outputs, after = linen_call(plain, params, others, True)
            return jnp.mean(outputs**2), {k: v for k, v in after.items() if k != "params"}

        grads, others = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        plain.variables = {"params": optax.apply_updates(params, updates), **others}


def train_step(row):
    """A `TrainState` ends where `fit` does, to the bit."""
    model = row.model()
    y = zeros(model, row.x)
    state, step = kfb.TrainState.from_keras(model, batch=(row.x, y)), kfb.make_train_step(model)
    for _ in range(STEPS):
        state, _ = step(state, (row.x, y))
    other = fitted(row.model(), row)
    wanted = kfb.TrainState.from_keras(other, batch=(row.x, y))
    trees = [
        {"params": s.params, "non_trainable": s.non_trainable, "opt": s.opt_state} for s in (state, wanted)
    ]
    assert not differing(*trees)


def files(row, tmp_path):
    """`.keras` and `.weights.h5` bring back every bit, keys and seeds too."""
    model = fitted(row.model(), row, 1)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded, other = keras.saving.load_model(tmp_path / "model.keras"), row.model()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    wanted, predicted = [np.asarray(v.value) for v in model.variables], model.predict(row.x, verbose=0)
    for new in (loaded, other):
        assert new.get_layer("flax").get_config().keys() == model.get_layer("flax").get_config().keys()
        same([v.value for v in new.variables[: len(wanted)]], wanted)
        same(new.predict(row.x, verbose=0), predicted)
    assert not differing(values(fitted(loaded, row, 1)), values(fitted(model, row, 1)))


def clones(row):
    """`clone_model` gives a layer of its own."""
    model = row.model()
    before = weights(model)
    clone = keras.models.clone_model(model)
    assert clone.output_shape == model.output_shape
    same(weights(clone), before)  # one seed
    clone.compile("sgd", "mse")
    fitted(clone, row, 1)
    same(weights(model), before)


def mixed(row):
    """Mixed precision: parameters and inputs in bfloat16, variables in float32, statistics as they are."""
    layer = row.layer(dtype="mixed_bfloat16")
    given = [x.astype(jnp.bfloat16) if x.dtype == np.float32 else x for x in row.x]
    outputs = layer(*row.args, **row.named)
    assert {str(v.dtype) for v in layer.trainable_weights} == {"float32"}
    plain = Plain(
        row._replace(
            args=tuple(given[: len(row.args)]),
            named=dict(zip(row.named, given[len(row.args) :], strict=True)),
        ),
        layer,
    )
    cast = lambda x: x.astype(jnp.bfloat16)  # noqa: E731
    if row.is_linen:
        fresh = Plain(row, layer)
        params, others = fresh.split()
        plain.variables = {"params": jax.tree.map(cast, params), **others}
    else:
        nnx.update(plain.module, jax.tree.map(cast, nnx.state(plain.module, nnx.Param)))
    same(outputs, plain.call(False))


def shapes(row):
    """The shape of outputs is found without numbers, whatever the batch."""
    args, named = row.inputs
    spec = row.layer()(*args, **named)
    wanted = row.layer()(*row.args, **row.named)
    assert (spec.shape, spec.dtype) == ((None, *wanted.shape[1:]), str(wanted.dtype))


class Host(keras.Model):
    """A subclassed model that holds the layer and one of Keras's."""

    def __init__(self, row):
        super().__init__()
        self.row, self.flax, self.dense = row, row.layer(), keras.layers.Dense(2)

    def call(self, x, training=None):
        count = len(self.row.args)
        named = dict(zip(self.row.named, x[count:], strict=True))
        return self.dense(self.flax(*x[:count], **named, training=training))


def hosts(row):
    """In a subclassed and, of one input, in a Sequential model, beside a layer of Keras's."""
    models = [Host(row)]
    if len(row.x) == 1:
        models.append(keras.Sequential([*row.inputs[0], row.layer(name="flax"), keras.layers.Dense(2)]))
    for model in models:
        model.compile("sgd", "mse")
        x = row.x if isinstance(model, Host) else row.x[0]
        y = np.zeros(model(x).shape, "float32")
        before = weights(model)
        model.fit(x, y, verbose=0)
        trained = zip(model.weights, before, strict=True)
        assert all(np.any(v.value != b) for v, b in trained if v.trainable and np.ndim(b) > 1)


def flax_again(row):
    """Flax in Keras in Flax: the numbers stay, and NNX trains what was `nnx.Param`."""
    model = row.model()
    module, linen = kfb.ToNNX(model), kfb.ToLinen(model)
    wanted, variables = model(row.x), linen.from_keras_values()
    np.testing.assert_allclose(module(row.x), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(linen.apply(variables, row.x), wanted, rtol=1e-6, atol=1e-6)
    assert len(nnx.to_flat_state(nnx.state(module, nnx.Param))) == len(model.trainable_weights)
    graph, state = nnx.split(module)
    grads = jax.jit(
        lambda s: nnx.grad(lambda m: jnp.mean(m(row.x, training=True) ** 2))(nnx.merge(graph, s))
    )(state)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads))
    drawn = [linen.init(jax.random.key(k), row.x)["params"] for k in (0, 0, 1)]
    assert jax.tree.structure(drawn[0]) == jax.tree.structure(variables["params"])
    same(drawn[0], drawn[1])
    one, two = (flatten_tree(tree) for tree in drawn[1:])
    assert all(np.any(one[path] != two[path]) for path in one if path[-1] in ("kernel", "embedding"))
    other = kfb.ToNNX(model, rngs=nnx.Rngs(5))
    assert other.variables_by_path().keys() == module.variables_by_path().keys()


def abstract(row):
    """`TrainState.abstract` has the leaves of the state, and allocates nothing of the module."""
    model = row.model()
    y = zeros(model, row.x)
    state = kfb.TrainState.from_keras(model, batch=(row.x, y))
    shapes = kfb.TrainState.abstract(row.model, batch=(row.x, y))
    spec = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), (tree.params, tree.non_trainable))  # noqa: E731
    assert spec(shapes) == spec(state)


def frozen(row):
    """A frozen layer stands still, statistics and all."""
    model = row.model(trainable=False)
    assert model.trainable_weights == []
    layer, wanted = model.get_layer("flax"), model.predict(row.x, verbose=0)
    before = dict(zip([v.path for v in layer.weights], weights(layer), strict=True))
    same(model(row.x, training=True), model(row.x, training=False))
    model.compile("sgd", "mse")
    fitted(model, row, 1)
    np.testing.assert_allclose(model.predict(row.x, verbose=0), wanted, atol=1e-6)
    moved = [v.path for v in layer.weights if np.any(np.asarray(v.value) != before[v.path])]
    assert not [path for path in moved if "count" not in path]  # cells of RNNs count in inference, too


CHECKS = [outputs, gradients, train_step, clones, mixed, shapes, hosts, flax_again, abstract, frozen]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_module(row, check):
    check(row)


def test_files(row, tmp_path):
    files(row, tmp_path)


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


# --- the module stays the caller's


def test_the_caller_s_module_is_neither_changed_nor_donated():
    module = flax_rows.Block(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(module, nnx.Not(nnx.RngState)))
    graph = nnx.graphdef(module)
    model = keras.Sequential([keras.Input((6,)), kfb.NNXLayer(module)])
    model.compile("adam", "mse")
    model.fit(flax_rows.V, np.zeros((8, 3)), epochs=2, verbose=0)
    assert nnx.graphdef(module) == graph
    same(nnx.state(module, nnx.Not(nnx.RngState)), before)
    module(flax_rows.V)  # its buffers are there
    assert np.any(model.trainable_weights[1].value != before["blocks"][0]["kernel"].get_value())


def test_weights_and_paths_are_the_module_s():
    layer = kfb.NNXLayer(flax_rows.nnx_block, name="block")
    assert [v.path for v in layer.trainable_weights] == [
        f"block/{path}"
        for path in (
            "blocks/0/bias",
            "blocks/0/kernel",
            "blocks/1/bias",
            "blocks/1/scale",
            "last/bias",
            "last/kernel",
        )
    ]
    assert [v.name for v in layer.non_trainable_weights] == ["mean", "var", "count", "key"]
    state = kfb.TrainState.from_keras(keras.Sequential([keras.Input((6,)), layer]), optimizer="sgd")
    assert state.params["block"]["blocks"]["0"]["kernel"].shape == (6, 4)


def test_a_dtype_of_the_module_s_own_stays():
    layer = kfb.NNXLayer(nnx.Linear, args=(6, 3), kwargs={"param_dtype": jnp.float16}, dtype="bfloat16")
    assert {v.dtype for v in layer.weights} == {"float16"}
    assert {v.dtype for v in kfb.NNXLayer(nnx.Linear, args=(6, 3), dtype="bfloat16").weights} == {"bfloat16"}


def test_one_seed_one_start():
    build = lambda seed: kfb.NNXLayer(nnx.Linear, args=(6, 3), seed=seed)  # noqa: E731
    same(weights(build(1)), weights(build(1)))
    assert np.any(weights(build(1))[1] != weights(build(2))[1])
    firsts = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        firsts.append(weights(build(None)))
    same(*firsts)


# --- the rest of the bridge


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


@pytest.mark.slow
def test_a_layer_that_is_built_under_a_trace_keeps_nothing_of_it(leaks):
    model = keras.Sequential([kfb.LinenLayer(flax_rows.linen_block), kfb.NNXLayer(nnx.Linear, args=(3, 2))])
    variables = jax.jit(lambda key: kfb.ToLinen(model).init(key, flax_rows.V))(jax.random.key(0))
    assert set(variables) == {"params", "batch_stats", "seeds"}
    assert model(flax_rows.V).shape == (8, 2)


# --- masks


class Pool(nn.Module):
    """The mean of what is not masked."""

    @nn.compact
    def __call__(self, x, mask=None):
        kept = jnp.ones(x.shape[:2]) if mask is None else mask.astype(x.dtype)
        return jnp.sum(x * kept[..., None], 1) / jnp.sum(kept, 1, keepdims=True)


def test_masks_reach_the_module_and_go_on():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    embed, dense, pool = (
        keras.layers.Embedding(5, 4, mask_zero=True),
        kfb.LinenLayer(nn.Dense(4)),
        kfb.LinenLayer(Pool()),
    )
    x = keras.Input((3,), dtype="int32")
    model = keras.Model(x, pool(dense(embed(x))))
    values = np.asarray(dense(embed(tokens)))
    wanted = [values[0, :2].mean(0), values[1, 0]]
    np.testing.assert_allclose(model(tokens), wanted, rtol=1e-6)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), wanted, rtol=1e-6)
    np.testing.assert_allclose(keras.Sequential([embed, dense, pool])(tokens), wanted, rtol=1e-6)
    # attention's mask is of another shape: Keras's goes by, and on
    attention = kfb.LinenLayer(nn.MultiHeadDotProductAttention(2))
    assert pool(attention(embed(tokens))).shape == (2, 4)


def test_shapes_are_found_without_a_call():
    class Refusing(nnx.Module):
        def __call__(self, x):
            assert isinstance(x, jax.core.Tracer), "called on numbers"
            return {"a": x @ jnp.ones((6, 3)), "b": x[..., :1]}

    found = kfb.NNXLayer(Refusing()).compute_output_spec(keras.KerasTensor((None, 6)))
    assert {name: spec.shape for name, spec in found.items()} == {"a": (None, 3), "b": (None, 1)}
    flat = kfb.NNXLayer(lambda: nnx.Sequential(lambda x: x.reshape(len(x), -1)[:, ::2]))
    assert flat.compute_output_spec(keras.KerasTensor((None, 4, 6))).shape == (None, 12)
    layer = kfb.NNXLayer(flax_rows.nnx_lstm)
    assert layer.compute_output_spec(keras.KerasTensor((None, 7, 6))).shape == (None, 7, 4)


def test_losses_that_a_linen_module_sows_are_trained_on():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(3)(x)
            self.sow("losses", "size", jnp.mean(y**2))
            return y

    layer = kfb.LinenLayer(Sowing())
    y = layer(flax_rows.V)
    np.testing.assert_allclose(layer.losses[0], jnp.mean(y**2), rtol=1e-6)
    assert [v.name for v in layer.weights] == ["bias", "kernel", "seed_generator_state"]


def test_a_field_says_that_the_module_trains():
    class Field(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=not self.train)(x)

    layer = kfb.LinenLayer(Field())
    one, two = layer(flax_rows.V, training=True), layer(flax_rows.V)
    assert np.any(one != two)
    np.testing.assert_allclose(np.mean(one, 0), np.zeros(6), atol=1e-6)
    fixed = kfb.LinenLayer(nn.BatchNorm(use_running_average=True))
    same(fixed(flax_rows.V, training=True), fixed(flax_rows.V))


# --- what the peers get wrong


def test_predict_drops_nothing_where_the_module_has_no_training_argument():
    """Flax's bridge in `FlaxLayer` predicts with dropout and the statistics of the batch."""
    layer = kfb.NNXLayer(flax_rows.Block(nnx.Rngs(0)))
    model = keras.Sequential([keras.Input((6,)), layer])
    one, two = (model.predict(flax_rows.V, verbose=0) for _ in range(2))
    same(one, two)
    part = model.predict(flax_rows.V[:2], verbose=0)
    np.testing.assert_allclose(part, one[:2], atol=1e-6)


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


def test_masks_differ_from_step_to_step_and_after_a_retrace():
    """A: in Keras's NNX mode they are the same in every call of nnx.jit, and a retrace fails."""
    module = kfb.ToNNX(keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5)]))
    call = nnx.jit(lambda module, x: module(x, training=True))
    one, two, three = (
        call(module, jnp.ones((4, 6))),
        call(module, jnp.ones((4, 6))),
        call(module, jnp.ones((3, 6))),
    )
    assert np.any(one != two)
    assert np.any(three != two[:3])


def test_layers_in_lists_train_and_merged_modules_are_on_their_own():
    """B and C: there they have no gradient, and a merged model computes with the original's weights."""

    class Listed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(3), keras.layers.Dense(2)]

        def call(self, x):
            return self.blocks[1](self.blocks[0](x))

    module = kfb.ToNNX(Listed())
    module(flax_rows.V)
    grads = nnx.grad(lambda module: jnp.mean(module(flax_rows.V) ** 2))(module)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    graph, state = nnx.split(module)
    other = nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))
    assert not np.any(other(flax_rows.V))
    assert np.any(module(flax_rows.V))


def test_no_tensorflow_is_asked_for():
    """D: `FlaxLayer`, and `JaxLayer` with init_fn, can't be built without it."""
    kfb.LinenLayer(nn.Dense(2))(flax_rows.V)
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
def test_with_nnx_mode_switched_on():
    """The flag is read at the first import of Keras: the fast tests again, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-x", str(Path(__file__))]
    environment = {**os.environ, "KERAS_NNX_ENABLED": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout


if keras.config.is_nnx_enabled():

    @pytest.mark.parametrize("row", [row for row in ROWS if row.fast], ids=lambda row: row.name)
    def test_in_nnx_mode_a_layer_is_a_module(row):
        layer = row.layer()
        before = layer(*row.args)
        graph, state = nnx.split(layer)
        assert not np.any(nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))(*row.args))
        same(layer(*row.args), before)
        call = nnx.jit(lambda layer, x: layer(x, training=True))
        one, two = call(layer, *row.args), call(layer, *row.args)
        assert np.any(one != two)
