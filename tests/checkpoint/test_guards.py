"""Files of Keras's kinds from strangers: refused at every door, before anything in them is read."""

import pathlib
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.slices import slices, together
from tests.support import hostile_files as hostile

FILES = {
    ".weights.h5": [*hostile.H5, *hostile.WEIGHTS],
    ".keras": [*hostile.ARCHIVES, *hostile.BYTES],
    ".safetensors": [*hostile.TENSORS],
}
NAMES = [f"{name.replace(' ', '_')}{suffix}" for suffix, names in FILES.items() for name in names]
# what shows only where arrays, or the bytes that hold them, are read: these doors read none
UNSEEN = {
    "inspect": {"chunk_bomb.weights.h5", "a_flipped_byte.keras"},
    "diff": {"chunk_bomb.weights.h5", "a_flipped_byte.keras"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_all(folder)
    return folder


def refused(act, *arguments):
    with pytest.raises(kfb.CheckpointError) as error:
        act(*arguments)
    return str(error.value)


def typed(*arguments):
    return lambda path: cli.main([str(word).replace("PATH", str(path)) for word in arguments])


DOORS = {
    "inspect": typed("inspect", "PATH"),
    "diff": typed("diff", "PATH", "PATH"),
    "diff --values": typed("diff", "PATH", "PATH", "--values"),
    "convert": typed("convert", "PATH", "PATH.out.safetensors"),
    "verify": typed("verify", "PATH"),
}


@pytest.mark.every(fast=2)
@pytest.mark.parametrize("name", NAMES)
def test_no_door_reads_it(folder, capsys, name):
    path, before = folder / name, {file.name for file in folder.iterdir()}
    for door, act in DOORS.items():
        code = act(path)
        out, error = capsys.readouterr()
        seen = name not in UNSEEN.get(door, ())
        unchecked = door == "verify" and name == "chunk_bomb.weights.h5"
        assert code in ((1, 2) if seen or unchecked else (0,)), (door, out, error)
        assert "--debug" not in error, (door, error)  # said where an error is not ours
        assert "3.25" not in out + error
        assert "\x1b" not in out + error
    assert {file.name for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".safetensors")])
def test_python_refuses_it(folder, name):
    model = hostile.build()
    kernel = model.layers[0].kernel.numpy()
    for act in (kfb.load_model, lambda path: kfb.restore(path, model)):
        said = refused(act, folder / name)
        assert name in said
    assert np.array_equal(model.layers[0].kernel.numpy(), kernel)


@pytest.mark.slow
def test_an_archive_is_judged_before_its_directory_is_read(tmp_path):
    path = tmp_path / "large.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"{i:060}"), b"")
    assert "a directory of more than" in refused(kfb.load_model, path)


# --- what honest tools write


def layered(dtype):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="é 层", dtype=dtype)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed_bfloat16"])
def test_dtypes_of_keras_are_read(tmp_path, capsys, dtype):
    model = layered(dtype)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    other = kfb.load_model(tmp_path / "m.keras")
    assert np.array_equal(other.get_weights()[0], model.get_weights()[0])
    assert kfb.restore(tmp_path / "m.weights.h5", layered(dtype)) is not None
    wanted = str(model.layers[0].kernel.dtype)
    for name in ("m.keras", "m.weights.h5"):
        assert cli.main(["inspect", str(tmp_path / name)]) == 0
        assert wanted in capsys.readouterr().out
        assert cli.main(["diff", str(tmp_path / name), str(tmp_path / name), "--values"]) == 0


ODD = {
    # name: how arrays are written
    "gzip": lambda file: file.create_dataset("a", data=np.arange(9000.0), chunks=(700,), compression="gzip"),
    "all filters": lambda file: file.create_dataset(
        "a", data=np.arange(9000.0), chunks=(700,), compression=9, shuffle=True, fletcher32=True
    ),
    "chunks": lambda file: file.create_dataset("a", data=np.ones((5, 5), "f4"), chunks=(2, 2)),
    "growing": lambda file: file.create_dataset("a", data=np.ones(5, "f4"), maxshape=(None,)),
    "big-endian": lambda file: file.create_dataset("a", data=np.arange(5, dtype=">f4")),
    "compact": lambda file: file.create_dataset("a", data=np.arange(5.0)),
    "scalar": lambda file: file.create_dataset("a", data=np.float32(3)),
    "no elements": lambda file: file.create_dataset("a", data=np.zeros((0, 3), "f4")),
    "no elements in chunks": lambda file: file.create_dataset("a", data=np.zeros((0, 3)), maxshape=(None, 3)),
    "bool": lambda file: file.create_dataset("a", data=np.array([True, False])),
    "complex": lambda file: file.create_dataset("a", data=np.ones(2, "complex64")),
    "float8": lambda file: file.create_dataset("a", data=np.ones(3, ml_dtypes.float8_e4m3fn)),
    "small zeros": lambda file: file.create_dataset("a", data=np.zeros(90_000), compression="gzip"),
    "empty groups": lambda file: (file.create_group("layers/x/vars"), file.create_dataset("a", data=[1.0])),
    "numbers and names": lambda file: [file.create_dataset(n, data=[1.0]) for n in ("1/2", "a", "1/b", "10")],
}


@pytest.mark.parametrize("name", ODD)
def test_honest_files_of_other_tools_are_read(tmp_path, name):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        ODD[name](file)
    with guards.weights(path, values=True) as weights, h5py.File(path) as file:
        for array in weights.arrays:
            found, wanted = weights.read(array), file[array][()]
            assert found.shape == wanted.shape
            assert found.astype(wanted.dtype).tobytes() == wanted.tobytes()
            pieces = np.concatenate([piece.reshape(-1) for piece in weights.pieces(array, 64)] or [[]])
            assert np.array_equal(pieces.astype(found.dtype), found.reshape(-1))
    assert cli.main(["inspect", str(path)]) == 0


def test_a_deflated_archive_is_read(tmp_path):
    model = hostile.build()
    model.save(tmp_path / "stored.keras")
    with (
        zipfile.ZipFile(tmp_path / "stored.keras") as stored,
        zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    same = ["diff", str(tmp_path / "stored.keras"), str(tmp_path / "packed.keras"), "--values"]
    assert cli.main(same) == 0
    assert kfb.verify(tmp_path / "packed.keras").ok
    loaded = kfb.load_model(tmp_path / "packed.keras")
    assert np.array_equal(loaded.get_weights()[0], model.get_weights()[0])


@keras.saving.register_keras_serializable("guards")
class Vocabulary(keras.layers.Layer):
    """A layer that keeps words beside its weights."""

    def __init__(self, words=(), **options):
        super().__init__(**options)
        self.words = list(words)

    def call(self, x):
        return x

    def save_assets(self, folder):
        pathlib.Path(folder, "words.txt").write_text("\n".join(self.words))

    def load_assets(self, folder):
        self.words = pathlib.Path(folder, "words.txt").read_text().split("\n")


def test_assets_are_loaded(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Vocabulary(["a", "é"]), keras.layers.Dense(2)])
    model.save(tmp_path / "assets.keras")
    assert kfb.verify(tmp_path / "assets.keras").ok
    assert kfb.load_model(tmp_path / "assets.keras").layers[0].words == ["a", "é"]


# --- arrays in parts


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (5, 1, 6), (2, 0, 3), (1, 50), (3, 2, 2, 5)])
@pytest.mark.parametrize(("most", "step"), [(1, 1), (4, 1), (7, 2), (1000, 3)])
def test_slices_are_the_array_in_order(shape, most, step):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    parts = [array[where] for where in slices(shape, most, step)]
    assert all(part.size <= max(most, 1) for part in parts)
    assert np.array_equal(np.concatenate([part.reshape(-1) for part in parts]), array.reshape(-1))


def test_pieces_of_other_sizes_meet():
    array = np.arange(100)
    first, second = iter(np.split(array, [7, 7, 50])), iter(np.split(array, [1, 20, 99]))
    pairs = list(together(first, second, 16))
    assert all(np.array_equal(a, b) and 0 < a.size <= 16 for a, b in pairs)
    assert sum(a.size for a, _ in pairs) == 100
