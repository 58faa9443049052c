"""What arrays below Orbax declare: what it writes passes, what takes memory without the bytes does not."""

import json
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import guards, orbax_io
from keras_flax_bridge.checkpoint.orbax_io import declared
from keras_flax_bridge.checkpoint.orbax_io.api import tensorstore
from tests.attacks import storage

TREE = {
    "a": jnp.arange(12.0).reshape(3, 4),
    "zeros": np.zeros((500, 500), "float32"),
    "half": jnp.ones((7, 3), jnp.bfloat16),
    "four": np.ones(5, ml_dtypes.int4),
    "flag": np.ones(3, bool),
    "complex": np.ones(3, "complex64"),
    "scalar": np.float32(3),
    "deep": {"b": np.arange(100_000), "0": np.ones((1, 1, 1, 1))},
}


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
@pytest.mark.parametrize("chunks", [None, 1 << 10])
def test_what_orbax_writes_passes(tmp_path, ocdbt, zarr3, chunks):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    options = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunks), TREE)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "x", TREE, save_args=options)
    found = declared.checked_files(tmp_path / "x")
    assert found.declared >= sum(leaf.nbytes for leaf in jax.tree.leaves(TREE))
    back = kfb.restore(tmp_path / "x", jax.tree.map(np.zeros_like, TREE))
    assert jax.tree.all(jax.tree.map(np.array_equal, back, TREE))
    assert kfb.verify(tmp_path / "x").damaged == {}


def test_arrays_of_several_devices_pass(tmp_path):
    mesh = jax.sharding.Mesh(jax.devices(), ("x",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = {"a": jax.device_put(jnp.arange(4000.0).reshape(800, 5), spec)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", tree)
    assert np.array_equal(kfb.restore(tmp_path / "x", tree)["a"], tree["a"])


WHOLE = {"shape": [3, 2], "chunks": [3, 2], "dtype": "<f4", "compressor": {"id": "zstd"}, "filters": None}
NEWER = {"shape": [3, 2], "data_type": "float32", "codecs": ["bytes", {"name": "zstd"}]}
NEWER["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [3, 2]}}
LARGE = {"name": "regular", "configuration": {"chunk_shape": [1 << 24, 2]}}
# metadata, and the field that is named
WRONG = {
    "no object": ([], "the metadata"),
    "no shape": ({**WHOLE, "shape": None}, "shape"),
    "a negative size": ({**WHOLE, "shape": [-1, 2]}, "shape"),
    "2**60 numbers": ({**WHOLE, "shape": [1 << 30, 1 << 30]}, "shape"),
    "no chunks": ({**WHOLE, "chunks": {}}, "chunks"),
    "chunks of other axes": ({**WHOLE, "chunks": [6]}, "chunks"),
    "large chunks": ({**WHOLE, "chunks": [1 << 20, 2]}, "chunks"),
    "large chunks of an unknown dtype": ({**WHOLE, "dtype": ["x"], "chunks": [1 << 17, 1]}, "chunks"),
    "Blosc": ({**WHOLE, "compressor": {"id": "blosc"}}, "codecs"),
    "bz2": ({**WHOLE, "compressor": {"id": "bz2"}}, "codecs: 'bz2'"),
    "zlib": ({**WHOLE, "compressor": {"id": "zlib"}}, "codecs: 'zlib'"),
    "large chunks of gzip": (
        {**WHOLE, "shape": [1 << 24, 2], "chunks": [1 << 24, 2], "compressor": {"id": "gzip"}},
        "codecs: gzip in chunks of 134,217,728 bytes",
    ),
    "large chunks, transposed": (
        {**NEWER, "shape": [1 << 24, 2], "codecs": [{"name": "transpose"}, "bytes"], "chunk_grid": LARGE},
        "codecs: transpose",
    ),
    "a filter": ({**WHOLE, "filters": [{"id": "pickle"}]}, "codecs"),
    "no grid": ({**NEWER, "chunk_grid": 3}, "chunk_grid"),
    "a large grid": ({**NEWER, "chunk_grid": {"configuration": {"chunk_shape": [1 << 30, 2]}}}, "chunk_grid"),
    "Blosc, newer": ({**NEWER, "codecs": [{"name": "blosc"}]}, "codecs"),
    "Blosc in shards": (
        {**NEWER, "codecs": [{"name": "sharding_indexed", "configuration": {"codecs": ["blosc"]}}]},
        "codecs",
    ),
    "codecs of no name": ({**NEWER, "codecs": [[]]}, "codecs"),
}


@pytest.mark.parametrize(("found", "field"), WRONG.values(), ids=WRONG)
def test_wrong_metadata_of_an_array_is_named(found, field):
    with pytest.raises(kfb.CorruptCheckpointError, match=f"here: got {field}"):
        guards.declared_bytes(found, "here")


@pytest.mark.parametrize("found", [WHOLE, NEWER], ids=["zarr 2", "zarr 3"])
def test_bytes_are_counted(found):
    assert guards.declared_bytes(found, "here") == 24


@pytest.mark.slow
def test_mere_zeros_go_into_arrays_of_ones_own_alone(tmp_path):
    """They compress 30,000 to 1: whoever has room for them gets them, and nobody else is filled with them."""
    path = tmp_path / "x"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": {"first": {"kernel": np.ones((3, 2), "float32")}}})
    kernel, size = storage.as_files(path), 68 << 20
    storage.set_array(kernel, storage.larger(size))
    for i in range(size >> 20):
        (kernel / f"{i}.0").write_bytes(storage.zeros(4 << 20))
    report = kfb.verify(path)
    assert "arrays of 285,212,672 bytes in files of " in str(report)
    assert not report.ok
    with pytest.raises(kfb.CheckpointError, match=r"restore\(path, like\)"):
        orbax_io.Stored(path).require_stored()
    like = {"params": {"first": {"kernel": np.ones((size // 2, 2), "float32")}}}
    assert not np.any(kfb.restore(path, like)["params"]["first"]["kernel"])


@pytest.mark.slow
def test_looking_at_5000_arrays_takes_a_part_of_a_second(tmp_path):
    kfb.save(tmp_path / "x", {f"layer{i}": np.ones((8, 4), "float32") for i in range(5000)})
    begin = time.process_time()
    found = declared.checked_files(storage.item(tmp_path / "x"))
    assert found.declared == 5000 * 128
    assert time.process_time() - begin < 2  # 0.2 s on an idle core


def test_a_list_of_leaves_that_is_not_there_is_an_error(tmp_path):
    kfb.save(tmp_path / "x", {"a": np.ones(3)})
    for text in ("[]", json.dumps({"tree_metadata": {"a": 3}}), json.dumps({"tree_metadata": [3]})):
        (storage.item(tmp_path / "x") / storage.LEAVES).write_text(text)
        with pytest.raises(kfb.CheckpointError):
            kfb.restore(tmp_path / "x", {"a": np.zeros(3)})


def test_arrays_are_checked_where_the_list_of_them_is_damaged(tmp_path):
    """Orbax reads what it can by the names of the leaves: so does the check."""

    class Damaged:
        def list(self):
            raise ValueError("DATA_LOSS: Error decoding b-tree node")

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", TREE)
    base = {"driver": "file", "path": f"{tmp_path}/x/"}
    store = tensorstore().KvStore.open({"driver": "ocdbt", "base": base}).result()
    whole = declared._keys(store, tmp_path / "x")
    assert len(whole) == len(jax.tree.leaves(TREE))
    assert set(whole) <= set(declared._keys(Damaged(), tmp_path / "x"))
