"""Flax modules as Keras layers, every row of the table: the plain module's numbers, and Keras's tools."""

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
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import differing, parameters, values
from tests.support.flax_layers import same, weights
from tests.tables.flax_in_keras_rows import ROWS, Plain, linen_call

STEPS = 3


@pytest.fixture(params=parameters(ROWS))
def row(request):
    return request.param


def zeros(model, x):
    """Targets; without a call, which some modules count."""
    return np.zeros((len(x[0]), *model.output_shape[1:]), "float32")


def fitted(model, row, epochs=STEPS):
    """The model after as many steps on the row's inputs."""
    y = zeros(model, row.x)
    model.fit(row.x, y, batch_size=len(y), epochs=epochs, shuffle=False, verbose=0)
    return model


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


@pytest.mark.every(fast=2, slow=3)
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_module(row, check):
    check(row)


@pytest.mark.slow
def test_files(row, tmp_path):
    files(row, tmp_path)


@pytest.mark.slow
def test_with_nnx_mode_switched_on():
    """The flag is read at the first import of Keras: the fast tests again, in a process of their own."""
    files = sorted(map(str, Path(__file__).parent.glob("test_flax_in_keras*.py")))
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-x", *files]
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
