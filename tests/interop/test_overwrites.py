"""Variables that gradients overwrite, as in float8 training: no optimizer trains them, each writes them.

A layer of two weights stands for a quantized one: Keras only asks the variable whether it is one of those.
"""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import differing

X = np.ones((2, 3), "float32")


class Scaled(keras.layers.Layer):
    """A kernel, and a scale whose gradient is 5 whatever the loss is."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],), initializer="ones", name="kernel")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.scale.overwrite_with_gradient = True

    def call(self, x):
        return x * self.kernel + 5.0 * (self.scale - jax.lax.stop_gradient(self.scale.value)) / 6.0


def build(optimizer=None):
    model = keras.Sequential([keras.Input((3,)), Scaled()])
    if optimizer is not None:
        model.compile(optimizer, total)
    return model


def total(y, p):
    """The sum of the outputs."""
    return keras.ops.sum(p, -1)


def gradients():
    return {"scaled": {"kernel": jnp.full(3, 0.5), "scale": jnp.asarray(5.0)}}


BY_HAND = {"scaled": {"kernel": jnp.full(3, 1 - 0.05), "scale": jnp.asarray(5.0)}}
TRAINED = {
    "keras": lambda: keras.optimizers.SGD(0.1),
    "scaled loss": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    "optax": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "norm of all": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1)
    ),  # 0.87 without the scale
    "as_optax": lambda: kfb.as_optax(keras.optimizers.SGD(0.1)),
    "OptaxOptimizer": lambda: kfb.OptaxOptimizer("sgd", 0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", TRAINED)
def test_states_write_them(name):
    state = kfb.TrainState.from_keras(build(), optimizer=TRAINED[name]())
    after = state.apply_gradients(grads=gradients())
    np.testing.assert_allclose(after.params["scaled"]["kernel"], BY_HAND["scaled"]["kernel"], rtol=1e-6)
    assert float(after.params["scaled"]["scale"]) == 5.0
    assert "scale" not in {path[-1] for path in flatten_tree(state.opt_state)}


@pytest.mark.parametrize("name", ["optax", "momentum"])
def test_steps_write_them_and_states_change_sides(name):
    model = build()
    step = kfb.make_train_step(model, loss=total, optimizer=TRAINED[name](), donate=False)
    state = kfb.TrainState.from_keras(model, optimizer=TRAINED[name](), loss=total)
    after, _ = step(state, (X, X))
    assert float(after.params["scaled"]["scale"]) != 1.0
    other = kfb.TrainState.from_keras(build("sgd"))
    assert differing(after.to_keras().params, after.params) == []
    assert jax.tree.structure(other.params) == jax.tree.structure(after.params)


def test_without_a_model_a_built_optimizer_knows_them():
    variables = [keras.Variable([1.0, 2.0], name=name) for name in ("v", "w")]
    variables[0].overwrite_with_gradient = True
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(variables)
    tx = kfb.as_optax(optimizer)
    params = {"v": jnp.asarray([1.0, 2.0]), "w": jnp.asarray([1.0, 2.0])}
    grads = {"v": jnp.asarray([5.0, 0.1]), "w": jnp.asarray([5.0, 5.0])}
    updates, _ = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["v"], grads["v"], rtol=1e-6)
    np.testing.assert_array_equal(new["w"], [-4.0, -3.0])
    with pytest.raises(kfb.StructureMismatchError, match="overwrite their variable"):
        tx.update(grads, tx.init(params))


# --- Flax


def loss(module):
    return jnp.sum(module(X, training=True))


BOTH = (nnx.Param, kfb.Overwritten)


@pytest.mark.parametrize("written_by", ["apply_overwrites", "as_optax"])
def test_modules_write_them(written_by):
    model = build("sgd")
    module = kfb.ToNNX(model)
    assert type(module.scaled.scale) is kfb.Overwritten
    assert type(module.scaled.kernel) is nnx.Param
    grads = nnx.grad(loss, argnums=nnx.DiffState(0, BOTH))(module)
    if written_by == "as_optax":
        optimizer = nnx.Optimizer(module, kfb.as_optax(model.optimizer, model=model), wrt=BOTH)
    else:
        optimizer = nnx.Optimizer(module, optax.sgd(0.01), wrt=nnx.Param)
        kfb.apply_overwrites(module, grads)
    optimizer.update(module, grads)
    assert float(module.scaled.scale[...]) == 5.0
    np.testing.assert_allclose(module.scaled.kernel[...], 0.98, rtol=1e-6)


@pytest.mark.parametrize("wrt", [nnx.Variable, BOTH, kfb.Overwritten, ...], ids=str)
@pytest.mark.parametrize("make", [optax.sgd, optax.adam])
def test_an_optimizer_that_would_train_them_is_refused(wrt, make):
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"apply_overwrites\(module, grads\)"):
        nnx.Optimizer(kfb.ToNNX(build()), make(0.1), wrt=wrt)


def test_a_module_that_is_not_differentiated_by_them_warns_once():
    module = kfb.ToNNX(build())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module(X, training=True)
        jax.jit(lambda x: module(x))(X)
        assert caught == []
        grads = nnx.jit(nnx.grad(loss))(module)
        nnx.grad(loss)(module)
    assert ["not updated" in str(w.message) for w in caught] == [True]
    with pytest.raises(kfb.StructureMismatchError, match="missing     scaled/scale"):
        kfb.apply_overwrites(module, grads)
    assert float(module.scaled.scale[...]) == 1.0


def test_linen_has_them_where_flax_looks_for_them():
    module = kfb.ToLinen(build())
    variables = module.init(jax.random.key(0), X)
    assert jax.tree.map(np.shape, variables["_overwrite_with_gradient"]) == {"scaled": {"scale": ()}}
    state = train_state.TrainState.create(apply_fn=module.apply, params=variables, tx=optax.adam(0.1))
    grads = jax.grad(lambda params: jnp.sum(state.apply_fn(params, X)))(state.params)
    state = state.apply_gradients(grads=grads)
    assert float(state.params["_overwrite_with_gradient"]["scaled"]["scale"]) == 5.0


@pytest.mark.slow
def test_float8_training_is_that_of_keras():
    def quantized(optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16)])
        model.layers[0].quantize("float8")
        model.compile(optimizer, "mse")
        return model

    batch = (np.random.default_rng(0).normal(size=(8, 16)).astype("float32"),) * 2
    ends = []
    for given in (None, optax.sgd(0.1)):
        model = quantized(keras.optimizers.SGD(0.1))
        step = kfb.make_train_step(model, optimizer=given, donate=False)
        state = kfb.TrainState.from_keras(model, optimizer=given)
        for _ in range(3):
            state, _ = step(state, batch)
        ends.append(state.params)
    assert differing(*ends) == []


@pytest.mark.slow
def test_linen_layers_train_those_of_their_module():
    module = nn.Dense(16, dot_general_cls=nn.Fp8DirectDotGeneralOp)
    model = keras.Sequential([keras.Input((16,)), kfb.LinenLayer(module)])
    model.compile(kfb.OptaxOptimizer("adam", 0.1), "mse")
    state = kfb.TrainState.from_keras(model)
    names = {path[-1] for path in flatten_tree(state.opt_state["slots"]["mu"])}
    assert names == {"kernel", "bias"}
    model.fit(np.full((8, 16), 3.0), np.ones((8, 16)), epochs=2, verbose=0)
    found = {v.path.split("/")[-1]: v for v in model.trainable_variables}
    assert float(jnp.max(found["input_amax_history"].value)) == 3.0
    assert found["input_amax_history"].overwrite_with_gradient
