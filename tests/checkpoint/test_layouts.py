"""Both layouts hold whatever is in a tree; the packed one in few files."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras import layers

import keras_flax_bridge as kfb
from tests.support.cases import equal
from tests.tables import contracts

# --- whatever is in a tree

# values beyond those of the table of every dtype in test_leaf_kinds.py, which are zeros and ones
LEAVES = {
    "nothing": jnp.zeros((0, 3), "bfloat16"),
    "bfloat16": jnp.arange(3, dtype="bfloat16"),
    "a numpy scalar": np.float32(2),
    "64 bits": np.array([2**40 + 1, 3]),
    "a 64-bit scalar": np.int64(10**10),
    "float8": jnp.arange(4, dtype="float8_e4m3fn"),
    "float8 of another kind": jnp.arange(4, dtype="float8_e4m3"),
    "float4": jnp.arange(4, dtype="float4_e2m1fn"),
    "int4": jnp.arange(4, dtype="int4"),
    "uint4": jnp.arange(6, dtype="uint4").reshape(2, 3),
    "large and of 4 bits": jnp.arange(70_000).astype("uint4"),
    "int2": jnp.arange(2, dtype="int2"),
    "uint2": jnp.arange(3, dtype="uint2"),
}


@pytest.mark.parametrize("layout", ["tree", "packed"])
@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_leaf_comes_back_as_it_was(tmp_path, leaf, layout):
    tree = {"x": leaf, "other": jnp.ones(1)}
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", tree)["x"]
    assert jnp.asarray(back).dtype == jnp.asarray(leaf).dtype
    if isinstance(leaf, np.ndarray | np.generic):
        assert np.asarray(back).dtype == leaf.dtype
    assert np.array_equal(np.asarray(back), np.asarray(leaf))


NAMES = {"a.b": 1.0, "a": {"b": 2.0, "c/d": 3.0, "": 4.0}, "a%2Eb": 5.0, "é ~0": 6.0}
EMPTY = {"none": None, "dict": {}, "list": []}


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_names_stay_apart_and_what_is_empty_stays(tmp_path, layout):
    tree = jax.tree.map(np.float32, {**NAMES, **EMPTY})
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", jax.tree.map(np.zeros_like, tree))
    assert jax.tree.map(float, back) == {**NAMES, **EMPTY}
    assert kfb.verify(tmp_path / "x").ok


# --- the packed layout


@pytest.mark.slow
def test_packed_reads_as_all_that_the_tree_does(trained, tmp_path):
    model, state = trained
    big = keras.Sequential([keras.Input((200,)), layers.Dense(200), layers.Dense(1)])
    big.compile("adam", "mse")
    for name, (owner, given) in {
        "small": (model, state),
        "big": (big, kfb.TrainState.from_keras(big)),
    }.items():
        with kfb.CheckpointManager(tmp_path / name, layout="packed") as manager:
            manager.save(given)
        assert equal(kfb.restore(tmp_path / name, given), given)
        assert equal(kfb.TrainState.from_keras(kfb.load_model(tmp_path / name)).params, given.params)
        module = kfb.restore(tmp_path / name, kfb.ToNNX(owner))
        assert equal(nnx.to_pure_dict(nnx.state(module, nnx.Param)), given.params)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    abstract = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)
    restored = kfb.restore(tmp_path / "small", like)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {sharding}


def test_packed_writes_few_files(tmp_path):
    tree = {f"{i}": {"a.b/c": jnp.full(3, i)} for i in range(300)}
    kfb.save(tmp_path / "packed", tree, layout="packed")
    assert equal(kfb.restore(tmp_path / "packed", tree), tree)
    assert len(list((tmp_path / "packed").rglob("*"))) < 40
