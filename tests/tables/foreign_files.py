"""Files and folders as other libraries write them, each by that library: one entry adds a format.

All hold the weights of one small model, by the names of `NAMES`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from flax.training import checkpoints
from safetensors.numpy import save_file

from keras_flax_bridge.tree.paths import nest_paths

# structural key: what a library calls it that knows nothing of Keras
NAMES = {
    "params/first/kernel": "model.first.weight",
    "params/first/bias": "model.first.bias",
    "params/norm/gamma": "model.norm.weight",
    "params/norm/beta": "model.norm.bias",
    "non_trainable/norm/moving_mean": "model.norm.running_mean",
    "non_trainable/norm/moving_variance": "model.norm.running_var",
    "params/dense/kernel": "model.last.weight",
    "params/dense/bias": "model.last.bias",
}
PAIRS = [
    (r"^model\.(\w+)\.", r"params/\1/"),
    (r"^params/(.*)running_var", r"non_trainable/\1moving_variance"),
    (r"^params/(.*)running_", r"non_trainable/\1moving_"),
    ("norm/weight", "norm/gamma"),
    ("norm/bias", "norm/beta"),
    ("/weight$", "/kernel"),
    ("/last/", "/dense/"),
]
RENAMES = {
    "pairs": PAIRS,
    "function": lambda name: {theirs: ours for ours, theirs in NAMES.items()}[name],
    "dict": {theirs: ours for ours, theirs in NAMES.items()},
}


class Format(NamedTuple):
    """A format.

    Attributes:
        write: writes arrays by name at a path; returns what `restore` is given.
        kind: how `inspect` calls it.
        nested: whether slashes in names are levels of what was written.
    """

    write: Callable[[Path, dict[str, Any]], Any]
    kind: str
    nested: bool = False


def tensors(path, arrays):
    save_file(arrays, path / "one.safetensors", metadata={"format": "pt"})
    return path / "one.safetensors"


def shards(path, arrays):
    """As transformers writes them."""
    names = list(arrays)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in files.items():
        save_file({name: arrays[name] for name in own}, path / file, metadata={"format": "pt"})
    where = {name: file for file, own in files.items() for name in own}
    index = {"metadata": {"total_size": 4}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")
    return path


def one_of_the_hub(path, arrays):
    """A folder with one file; its name doesn't matter."""
    save_file(arrays, path / "model.safetensors")
    return str(path)


def npz(path, arrays, save=np.savez):
    save(path / "one.npz", **arrays)
    return path / "one.npz"


def compressed(path, arrays):
    return npz(
        path, {name: np.asfortranarray(a.astype(">f4")) for name, a in arrays.items()}, np.savez_compressed
    )


def loaded(path, arrays):
    return np.load(npz(path, arrays))


def in_memory(path, arrays):
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def to_bytes(path, arrays):
    (path / "flax_model.msgpack").write_bytes(serialization.to_bytes(nested(arrays)))
    return path / "flax_model.msgpack"


def by_flax(path, arrays, *, orbax=False):
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", orbax)
    try:
        for step in (9, 12):  # 9 is later in the alphabet
            checkpoints.save_checkpoint(
                path, nested({n: a + (step - 12) for n, a in arrays.items()}), step, keep=2
            )
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)
    return path


def by_flax_with_orbax(path, arrays):
    return by_flax(path, arrays, orbax=True)


def managed(path, arrays, **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in (9, 12):
            tree = nested({n: a + (step - 12) for n, a in arrays.items()})
            manager.save(step, args=ocp.args.StandardSave(tree))
    return path


def prefixed(path, arrays):
    return managed(path, arrays, step_prefix="run.v2")


def prefixed_and_padded(path, arrays):
    return managed(path, arrays, step_prefix="step", step_format_fixed_length=6)


def named_otherwise(path, arrays):
    """By a name format of the user's own."""
    managed(path, arrays)
    for folder in path.iterdir():
        folder.rename(path / f"epoch={folder.name}-done")
    return path


def flat_in_orbax(path, arrays):
    """Names with slashes in one level, as kithara writes them."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "one", arrays)
    return path / "one"


def composite(path, arrays):
    """A tree for each collection, and one that is no tree of arrays."""
    trees = {name: ocp.args.StandardSave(tree) for name, tree in nested(arrays).items()}
    with ocp.CheckpointManager(path) as manager:
        manager.save(3, args=ocp.args.Composite(**trees, notes=ocp.args.JsonSave({"a": 1})))
    return path


def nested(arrays):
    return nest_paths({tuple(name.split("/")): array for name, array in arrays.items()})


FORMATS = {
    "safetensors": Format(tensors, "safetensors file"),
    "shards of Hugging Face": Format(shards, "safetensors files of an index"),
    "a folder of Hugging Face": Format(one_of_the_hub, "safetensors file"),
    "npz": Format(npz, "npz file"),
    "npz, compressed": Format(compressed, "npz file"),
    "npz, loaded": Format(loaded, ""),
    "a dict": Format(in_memory, ""),
    "msgpack": Format(to_bytes, "msgpack file of Flax", nested=True),
    "Flax's checkpoints": Format(by_flax, "msgpack file of Flax", nested=True),
    "Flax's checkpoints in Orbax": Format(by_flax_with_orbax, "checkpoint of other Orbax code", nested=True),
    "step_prefix": Format(prefixed, "checkpoint of other Orbax code", nested=True),
    "step_prefix, padded": Format(prefixed_and_padded, "checkpoint of other Orbax code", nested=True),
    "an own name format": Format(named_otherwise, "checkpoint of other Orbax code", nested=True),
    "a flat dict in Orbax": Format(flat_in_orbax, "checkpoint of other Orbax code"),
}
