"""Modules of layers that compute the same are of one type to JAX and Flax, as two `nnx.Linear` are."""

import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb
from tests.support.capabilities import needs

X = np.arange(12, dtype="float32").reshape(3, 4) / 10


def dense(seed):
    return kfb.ToNNX(layers.Dense(2), rngs=nnx.Rngs(seed), shape=(None, 4))


def network(seed):
    keras.utils.set_random_seed(seed)
    parts = [layers.Dense(4, "tanh"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    return kfb.ToNNX(keras.Sequential([keras.Input((4,)), *parts]))


def test_a_jitted_function_is_traced_once():
    traces = []

    @nnx.jit
    def call(module):
        traces.append(module)
        return module(X)

    modules = [dense(seed) for seed in range(3)]
    outputs = [call(module) for module in modules]
    assert len(traces) == 1
    assert all(np.allclose(y, module(X)) for y, module in zip(outputs, modules, strict=True))
    assert not np.allclose(outputs[0], outputs[1])


def test_a_train_step_of_one_module_serves_the_other():
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(lambda m: jnp.mean(m(X, training=True) ** 2))(module))

    jitted = nnx.jit(step)
    results = []
    for run in (jitted, step):
        modules = [network(1), network(2)]
        for module in modules:
            optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
            for _ in range(2):
                run(module, optimizer)
        results.append([jax.tree.leaves(nnx.state(module)) for module in modules])
    for one, two in zip(*results, strict=True):
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))


def test_a_module_keeps_its_own_layer():
    first, second = layers.Dense(2), layers.Dense(2)
    modules = [kfb.ToNNX(layer, shape=(None, 4)) for layer in (first, second)]
    call = nnx.jit(lambda module: module(X))
    for module in modules:
        call(module)
    first.enable_lora(2)
    np.testing.assert_array_equal(call(modules[1]), second(X))
    modules[1].kernel.set_value(modules[1].kernel.get_value() + 1)
    modules[1].assign_to(second)
    np.testing.assert_array_equal(modules[1](X), second(X))


def test_trees_of_two_modules_have_one_structure():
    modules = [dense(seed) for seed in range(3)]
    graphdefs, states = zip(*map(nnx.split, modules), strict=True)
    assert graphdefs[0] == graphdefs[1]
    stacked = nnx.merge(graphdefs[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    outputs = nnx.vmap(lambda module, x: module(x), in_axes=(0, None))(stacked, X)
    for module, y in zip(modules, outputs, strict=True):
        np.testing.assert_allclose(module(X), y, rtol=1e-6)
    chosen = jax.lax.cond(True, lambda: nnx.split(modules[0]), lambda: nnx.split(modules[1]))
    np.testing.assert_array_equal(nnx.merge(*chosen)(X), modules[0](X))


@needs("nnx.jit(graph=False)")
def test_modules_are_pytrees_of_one_structure():
    modules = [dense(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)
    assert stacked.kernel.shape == (3, 4, 2)
    axes = nnx.prefix(dense(0), {nnx.Param: 0}, graph=False)
    made = nnx.vmap(lambda: dense(0), out_axes=axes, axis_size=3, graph=False)()
    assert made.kernel.shape == (3, 4, 2)


def test_a_pickled_module_is_of_the_type_of_the_first():
    module = network(1)
    copy = pickle.loads(pickle.dumps(module))
    assert nnx.graphdef(copy) == nnx.graphdef(module)


def test_modules_that_are_not_built_are_apart():
    modules = [kfb.ToNNX(layers.Dense(2)) for _ in range(2)]
    assert nnx.graphdef(modules[0]) != nnx.graphdef(modules[1])
    call = nnx.jit(lambda module: module(X))
    first, second = map(call, modules)
    assert not np.allclose(first, second)


def test_layers_that_differ_are_two_types():
    small, large = (kfb.ToNNX(layers.Dropout(rate), shape=(None, 4)) for rate in (0.1, 0.9))
    call = nnx.jit(lambda module: module(jnp.ones(1000), training=True))
    assert np.mean(call(small) == 0) < 0.3 < 0.7 < np.mean(call(large) == 0)
