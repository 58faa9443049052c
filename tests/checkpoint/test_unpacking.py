"""Compressed chunks that others wrote, unpacked in parts: the same elements, or none."""

import numpy as np
import pytest
import tensorstore as ts

from keras_flax_bridge.checkpoint.orbax_io import pieces
from keras_flax_bridge.checkpoint.orbax_io.unpacking import unpacked

SHAPES = {  # shape: of a chunk
    (64,): (64,),
    (100, 7): (33, 7),
    (6, 5, 4): (1, 5, 4),
    (2000, 1500): (1500, 1500),  # longer than a part
}
CODECS = {
    "zarr": {"compressor": {"id": "zstd", "level": 1}},
    "zarr3": {"codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}]},
}


def written(folder, driver, values, chunk, **settings):
    """An array that tensorstore wrote, as the package opens it."""
    grid = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}}}
    metadata = {**({"chunks": chunk} if driver == "zarr" else grid), **CODECS[driver], **settings}
    store = {"driver": driver, "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/", "path": "a/"}}
    new = ts.open({**store, "metadata": metadata}, create=True, dtype=values.dtype, shape=values.shape)
    new.result()[...].write(values).result()
    return ts.open(store, open=True, read=True, context=pieces._context()).result()


@pytest.mark.parametrize("dtype", ["uint16", "float32", "bfloat16", "bool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("driver", CODECS)
def test_parts_are_the_array(tmp_path, driver, shape, dtype):
    values = np.random.default_rng(0).integers(0, 2, shape).astype(ts.dtype(dtype).numpy_dtype)
    array = written(tmp_path, driver, values, SHAPES[shape])
    parts = list(unpacked(array, pieces._context()))
    assert max(part.nbytes for part in parts) <= 1 << 22
    assert np.concatenate(parts).tobytes() == values.tobytes()
    assert {part.dtype for part in parts} == {values.dtype}


@pytest.mark.parametrize(
    ("driver", "settings"),
    [
        ("zarr", {"order": "F"}),
        ("zarr", {"dtype": ">f4"}),
        ("zarr", {"compressor": {"id": "zlib", "level": 1}}),
        ("zarr", {"chunks": (50, 4)}),
        ("zarr3", {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd"}]}),
        ("zarr3", {"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, {"name": "zstd"}]}),
    ],
)
def test_other_chunks_are_left_to_tensorstore(tmp_path, driver, settings):
    values = np.arange(700, dtype="f4").reshape(100, 7)
    array = written(tmp_path, driver, values, (100, 7), **settings)
    assert unpacked(array, pieces._context()) is None
    assert np.array_equal(np.concatenate([p.reshape(-1) for p in pieces.pieces(array)]), values.reshape(-1))


def test_chunks_that_are_not_there_are_left_to_tensorstore(tmp_path):
    values = np.zeros((100, 7), "f4")  # which tensorstore doesn't write
    assert (
        unpacked(written(tmp_path, "zarr", values, (50, 7), fill_value=0.0, dtype="<f4"), pieces._context())
        is None
    )


def test_a_chunk_of_another_size_is_an_error(tmp_path):
    array = written(tmp_path, "zarr", np.arange(700, dtype="f4").reshape(100, 7), (50, 7))
    store = array.kvstore
    short = written(tmp_path / "short", "zarr", np.arange(7, dtype="f4").reshape(1, 7), (1, 7))
    store.write("1.0", short.kvstore.read("0.0").result().value).result()
    with pytest.raises(ValueError, match="ends 1,372 bytes too early"):
        list(unpacked(array, pieces._context()))
    long = written(tmp_path / "long", "zarr", np.arange(7000, dtype="f4").reshape(1000, 7), (1000, 7))
    store.write("1.0", long.kvstore.read("0.0").result().value).result()
    with pytest.raises(ValueError, match="goes on after its end"):
        list(unpacked(array, pieces._context()))
