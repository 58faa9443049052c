"""Files that were changed to harm: what a config, a name or a setting may hold when a stranger wrote it."""

from __future__ import annotations

import json
import os
import types
import zipfile
import zlib
from collections import deque
from pathlib import Path

import keras
import optax
from keras.src.utils.python_utils import func_dump

import keras_flax_bridge as kfb

ESCAPE = "a\x1b]0;owned\x07\x1b[2Jb\nforged: ok\r\u202ec\u2028d\x9be"


def small(optimizer="sgd"):
    """The smallest compiled model."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def way_to_os(module=optax):
    """A dotted name by which attributes of a module lead to the module os."""
    seen, queue = set(), deque([("", module)])
    while queue:
        path, place = queue.popleft()
        for name, thing in list(vars(place).items()):
            if thing is os:
                return f"{path}.{name}".strip(".")
            if isinstance(thing, types.ModuleType) and id(thing) not in seen:
                seen.add(id(thing))
                queue.append((f"{path}.{name}".strip("."), thing))
    raise AssertionError("no way")


def code(mark):
    """A lambda that leaves a mark when it is called, as Keras writes it."""
    value = func_dump(eval(f"lambda *a, **k: open({str(mark)!r}, 'w').close()"))
    return {"class_name": "__lambda__", "config": {"value": value}}


def layer(**config):
    """The config of a Dense layer."""
    return {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2, **config}}


def lambda_layer(mark):
    """A layer that leaves a mark when it is called, as Keras writes it."""
    value, defaults, closure = code(mark)["config"]["value"]
    written = {
        "class_name": "__lambda__",
        "config": {"code": value, "defaults": defaults, "closure": closure},
    }
    config = {"function": written, "arguments": {}, "name": "code"}
    return {"module": "keras.layers", "class_name": "Lambda", "config": config, "registered_name": None}


def function(module, name):
    """A function by its module, as Keras writes it."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def changed_file(good: Path, bad: Path, change) -> Path:
    """A `.keras` file with another config."""
    with zipfile.ZipFile(good) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    items["config.json"] = json.dumps(change(json.loads(items["config.json"]))).encode()
    with zipfile.ZipFile(bad, "w") as archive:
        for name, content in items.items():
            archive.writestr(name, content)
    return bad


def changed_checkpoint(path: Path, state, change) -> Path:
    """A checkpoint with another config, and the checksum that belongs to it."""
    kfb.save(path, state)
    mark = path / "_CHECKPOINT_METADATA"
    metadata = json.loads(mark.read_text())
    ours = json.loads(metadata["custom_metadata"]["keras_flax_bridge"])
    ours["model"] = change(ours["model"])
    text = json.dumps(ours)
    metadata["custom_metadata"] |= {
        "keras_flax_bridge": text,
        "keras_flax_bridge_crc32": zlib.crc32(text.encode()),
    }
    mark.write_text(json.dumps(metadata))
    return path
