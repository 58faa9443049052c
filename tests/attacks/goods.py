"""Whole artifacts of every kind, of one small model, and what the doors are given beside them."""

import functools
import json
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
from flax import nnx, serialization
from keras import layers
from safetensors.numpy import save_file

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.orbax_io.api import MARK, OURS, OURS_SUM
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.paths import flatten_tree, join_path, nest_paths
from tests.support.capabilities import where

KINDS = (
    "tree",
    "packed",
    "keras",
    "weights",
    "safetensors",
    "index",
    "npz",
    "msgpack",
    "map",
    "flax",
    *where("OrbaxCheckpoint", ["callback"]),
)


def build():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="first"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


@dataclass(frozen=True)
class Goods:
    """Where they lie, and the state that they hold."""

    folder: Path
    state: kfb.TrainState

    @functools.cached_property
    def flat(self):
        return {path: np.asarray(leaf) for path, leaf in flatten_tree(self.state).items()}

    @functools.cached_property
    def model(self):
        """One that tests fill again and again."""
        return build()

    @functools.cached_property
    def module(self):
        return migrate.to_nnx(self.model)

    def path(self, kind):
        return self.folder / NAMES[kind]


NAMES = {
    "tree": "tree/7",
    "packed": "packed/7",
    "keras": "model.keras",
    "weights": "model.weights.h5",
    "safetensors": "model.safetensors",
    "index": "shards/model.safetensors.index.json",
    "npz": "model.npz",
    "msgpack": "model.msgpack",
    "map": "map.json",
    "flax": "flax/7",
    "callback": "callback/0",
}


def write(folder):
    """Writes all of them."""
    keras.utils.set_random_seed(0)
    model = build()
    state = kfb.TrainState.from_keras(model)
    for layout in ("tree", "packed"):
        kfb.save(folder / layout / "7", state, layout=layout)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    flat = {path: np.asarray(leaf) for path, leaf in flatten_tree(state).items()}
    for kind in compat.kinds("OrbaxCheckpoint"):
        saver = kind(str(folder / "callback"))
        saver.set_model(model)
        saver.on_train_begin()
        saver.on_epoch_end(0)
        saver.on_train_end()
    orbax_io.save_plain(folder / "flax" / "7", nest_paths(flat))
    save_file({join_path(path): leaf for path, leaf in flat.items()}, folder / "model.safetensors")
    named = {join_path(path): leaf for path, leaf in flat.items()}
    np.savez(folder / "model.npz", **named)
    (folder / "model.msgpack").write_bytes(serialization.to_bytes(nest_paths(flat)))
    write_shards(folder / "shards", named)
    migrate.to_nnx(model).weight_map.save(folder / "map.json")
    return Goods(folder, state)


def write_shards(folder, arrays):
    """Two files and their index."""
    folder.mkdir()
    names = list(arrays)
    files = {f"part-{i + 1}.safetensors": names[i::2] for i in range(2)}
    for file, own in files.items():
        save_file({name: arrays[name] for name in own}, folder / file)
    where = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def copied(goods, kind, folder):
    """A copy of one artifact, to be spoilt; its root is a folder of its own."""
    path = folder / NAMES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    source = goods.path(kind)
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)
    if kind == "index":
        for shard in source.parent.glob("*.safetensors"):
            shutil.copyfile(shard, path.with_name(shard.name))
    return path


# --- what an attacker can write anew, its checksum with it


def ours(path):
    """Our metadata in a checkpoint."""
    return json.loads(json.loads((path / MARK).read_text())["custom_metadata"][OURS])


def set_ours(path, found):
    """Writes our metadata, as text or as what JSON holds, under a right checksum."""
    outer = json.loads((path / MARK).read_text())
    text = found if isinstance(found, str) else json.dumps(found)
    outer["custom_metadata"] = {OURS: text, OURS_SUM: zlib.crc32(text.encode(errors="replace"))}
    (path / MARK).write_text(json.dumps(outer))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def set_members(path, found):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content)


def set_config(path, change):
    """Changes the config in a `.keras` file or in a checkpoint; `change` gives the new one."""
    if path.is_dir():
        found = ours(path)
        set_ours(path, {**found, "model": change(found["model"])})
    else:
        found = members(path)
        config = change(json.loads(found["config.json"]))
        set_members(path, {**found, "config.json": json.dumps(config).encode()})


def header(path):
    """The header of a safetensors file, and the bytes behind it."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def set_header(path, found, rest):
    text = (found if isinstance(found, str) else json.dumps(found)).encode(errors="surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def rewritten(path, change):
    """Changes the arrays of an HDF5 file, by itself or in a `.keras` file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            change(file)
        return
    found = members(path)
    inner = path.with_suffix(".inner")
    inner.write_bytes(found["model.weights.h5"])
    with h5py.File(inner, "r+") as file:
        change(file)
    set_members(path, {**found, "model.weights.h5": inner.read_bytes()})
    inner.unlink()


def other_module():
    """A module that none of the checkpoints is of."""
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))
