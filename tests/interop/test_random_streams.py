"""Keras seeds in Flax's functions for random state: what they do with `nnx.Dropout` they do with `ToNNX`."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb
from tests.support.capabilities import needs

X = jnp.ones((4, 32))
SEEDS = nnx.StateAxes({nnx.RngState: 0, ...: None})


class Flax(nnx.Module):
    """Two layers that draw and one that trains, as `build` makes them."""

    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(32, 16, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dense(self.first(x)))


def build():
    drawing = [layers.Dropout(0.5, seed=3), layers.Dense(16), layers.Dropout(0.5, seed=4)]
    return keras.Sequential([keras.Input((32,)), *drawing])


def in_keras(rngs=None, **options):
    module = kfb.ToNNX(build(), rngs=rngs, **options)
    module.train()
    return module


SIDES = {"nnx.Dropout": Flax, "ToNNX": in_keras}


def made(side):
    return side(nnx.Rngs(0, dropout=1))


def call(module):
    return module(X)


def over_seeds(module, splits=3, only=..., axes=SEEDS):
    """The outputs of members that differ in their seeds."""
    split = nnx.split_rngs(splits=splits, only=only)
    return split(nnx.vmap(call, in_axes=(axes,)))(module)


def different(outputs):
    return len({np.asarray(output).tobytes() for output in outputs})


# --- what Flax's functions do: each holds of both sides


def reseed(side):
    module = made(side)
    outputs = []
    for key in (7, 7, 8, jax.random.key(7), jax.random.key(9, impl="rbg")):
        nnx.reseed(module, dropout=key)
        outputs += [module(X), module(X)]
    return different(outputs) == 6 and different(outputs[:4] + outputs[6:8]) == 2


def reseed_of_another_name(side):
    module, other = made(side), made(side)
    nnx.reseed(module, params=7, noise=7)
    return different([module(X), other(X)]) == 1


def reseed_in_jit(side):
    @nnx.jit
    def step(module, key):
        nnx.reseed(module, dropout=key)
        return module(X)

    module = made(side)
    return different([step(module, jax.random.key(k)) for k in (1, 1, 2)]) == 2


def split_rngs(side):
    module = made(side)
    return different([*over_seeds(module), *over_seeds(module), module(X), module(X)]) == 8


def split_by_name(side):
    module = made(side)
    axes = nnx.StateAxes({"dropout": 0, ...: None})
    return different([*over_seeds(module, only="dropout", axes=axes), *over_seeds(module, splits=2)]) == 5


def split_of_another_name(side):
    module, other = made(side), made(side)
    with nnx.split_rngs(module, splits=3, only="params"):
        return different([module(X), other(X)]) == 1


def squeezed_split(side):
    module = made(side)
    with nnx.split_rngs(module, splits=1, squeeze=True):
        inside = [module(X), module(X)]
    return different([*inside, module(X)]) == 3


def split_of_two_axes_reseeded(side):
    module = made(side)
    with nnx.split_rngs(module, splits=(2, 3)):
        nnx.reseed(module, policy="match_shape", dropout=7)
        shapes = {stream.shape for _, stream in nnx.to_flat_state(nnx.state(module, nnx.RngState))}
    return {shape[:2] for shape in shapes} == {(2, 3)}


def split_in_scan(side):
    def step(carry, module):
        return carry, module(X)

    scan = nnx.scan(step, in_axes=(nnx.Carry, SEEDS), out_axes=(nnx.Carry, 0), length=4)
    return different(nnx.split_rngs(splits=4)(lambda module: scan(0.0, module))(made(side))[1]) == 4


def fork_rngs(side):
    module, forked = made(side), nnx.fork_rngs()(call)
    return different([forked(module), forked(module), module(X)]) == 3


def restore_rngs(side):
    module, other = made(side), made(side)
    nnx.restore_rngs(nnx.fork_rngs(module))
    nnx.restore_rngs(nnx.split_rngs(module, splits=3))
    drawn = [other(X) for _ in range(3)]
    return different([drawn[-1], module(X)]) == 1


def backup_keys(side):
    module = made(side)
    backup = getattr(nnx, "compat", nnx.rnglib).backup_keys(module)
    outputs = [module(X)]
    nnx.restore_rngs(backup)  # not the counts
    return different([*outputs, module(X)]) == 2


def state(side):
    module = made(side)
    streams = nnx.to_flat_state(nnx.state(module, nnx.RngState))
    _, random, rest = nnx.split(module, "dropout", ...)
    return (
        len(streams) > 1 and len(nnx.to_flat_state(random)) == len(streams) and not nnx.state(rest, "dropout")
    )


def apply_of_the_bridge(side):
    module = nnx.bridge.ToLinen(side)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    outputs = [module.apply(variables, X, rngs={"dropout": jax.random.key(k)}) for k in (1, 1, 2)]
    return [*variables] == ["params"] and different(outputs) == 2


def lazy_init(side):
    module = made(side)
    return nnx.bridge.lazy_init(module, X) is module


def training(side):
    """An ensemble of masks, whose members share the weights."""
    module = made(side)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss, gradients = nnx.value_and_grad(lambda module: (over_seeds(module) ** 2).mean())(module)
        optimizer.update(module, gradients)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(4)]
    return losses[-1] < losses[0] and different([module(X), module(X)]) == 2


def copies(side, **mode):
    """Of the functions that return another module: the first one keeps its streams."""
    module = made(side)
    forked = nnx.fork_rngs(module, **mode)
    split = nnx.with_rngs(module, split=3, **mode)
    equal = nnx.with_rngs(module, broadcast=3, **mode)
    members = [nnx.vmap(call, in_axes=(SEEDS,))(part) for part in (split, equal)]
    return [different(outputs) for outputs in members] == [3, 1] and different([module(X), forked(X)]) == 2


def copies_in_tree_mode(side):
    return copies(side, graph=False)


def copies_without_updates(side):
    return copies(side, graph=True, graph_updates=False)


NEWER = (copies_in_tree_mode, copies_without_updates)
SLOW = (training, split_in_scan, *NEWER)
OPERATIONS = (
    *(reseed, reseed_of_another_name, reseed_in_jit, split_rngs, split_by_name, split_of_another_name),
    *(squeezed_split, split_of_two_axes_reseeded, split_in_scan, fork_rngs, restore_rngs, backup_keys, state),
    *(apply_of_the_bridge, lazy_init, training, *NEWER),
)


def row(operation, side):
    marks = [needs("nnx.with_rngs")] * (operation in NEWER) + [pytest.mark.slow] * (operation in SLOW)
    return pytest.param(operation, SIDES[side], id=f"{operation.__name__}, {side}", marks=marks)


ROWS = [row(operation, side) for operation in OPERATIONS for side in SIDES]


@pytest.mark.parametrize(("operation", "side"), ROWS)
def test_flax_s_functions_do_the_same_with_seeds_of_keras(operation, side):
    assert operation(side)


# --- the seed itself


def seed_of(module):
    return module.dropout.seed_generator_state


def test_masks_are_those_of_keras_where_streams_are_only_looked_at():
    model = build()
    module = kfb.ToNNX(model)
    for _ in range(2):
        seed = seed_of(module)
        assert isinstance(seed, nnx.RngStream)
        assert seed.key.get_value() == jax.random.key(3)
        assert seed.count.get_value() == model.layers[0].seed_generator.state[1]
        assert np.array_equal(module(X, training=True), model(X, training=True))
    with nnx.split_rngs(module.dropout, splits=2), nnx.fork_rngs(module.dropout_1):
        assert seed_of(module).get_value().shape == (2, 2)
    for layer in (model.layers[0], model.layers[2]):
        layer.seed_generator.next()  # each stream has drawn one key
    assert np.array_equal(module(X, training=True), model(X, training=True))


def test_new_seeds_go_back_into_keras():
    module, model = in_keras(), build()
    nnx.reseed(module, dropout=7)
    module(X)
    module.assign_to(model)
    assert model.layers[0].seed_generator.state[1] == 1
    assert np.array_equal(model(X, training=True), module(X))


def test_seeds_come_from_the_dropout_stream_of_rngs():
    def values(layer, **streams):
        module = kfb.ToNNX(layer, rngs=nnx.Rngs(0, **streams))
        module(X)
        seeds = [getattr(module, f"dropout{n}").seed_generator_state.get_value() for n in ("", "_1")]
        return np.stack(seeds), module.dense.kernel.get_value()

    late = keras.Sequential([layers.Dropout(0.5), layers.Dense(16), layers.Dropout(0.5)])
    seeds, kernels = zip(
        values(build()),
        values(build(), dropout=1),
        values(build(), dropout=2),
        values(late, dropout=1),  # built by its first call
        strict=True,
    )
    assert np.array_equal(seeds[1], seeds[3])
    assert len(np.unique(seeds[:3], axis=None)) == 7  # two in each of three, and counters at zero
    assert different(kernels) == 1


@needs("nnx.with_rngs")
def test_a_copy_by_split_rngs_is_refused():
    module = in_keras()
    with pytest.raises(kfb.StructureMismatchError, match="with_rngs"):
        nnx.split_rngs(module, splits=3, graph=False)
    assert seed_of(module).get_value().shape == (2,)


def test_an_abstract_seed_has_an_abstract_key():
    module = nnx.eval_shape(lambda: kfb.ToNNX(keras.layers.Dropout(0.5), shape=(None, 4)))
    seed = module.seed_generator_state
    assert seed.key.get_value() == jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    assert seed.count.get_value() == jax.ShapeDtypeStruct((), np.uint32)
