"""Checkpoints side by side: save and restore of many small leaves, and of 500 MB.

Every competitor writes into a fresh folder of one file system, and reads it back from the page
cache. All hold the same weights: ours a `TrainState` of them, with checksums and the config of the
model; plain Orbax the same tree; Keras's callback and files the model itself, without optimizer.

The phases: ``save blocks`` until the call returns, ``save`` until it is on disk, ``restore``. Orbax
waits for the disk (fsync). HDF5 and safetensors leave that to the system: "safetensors, on disk" is
the same file with fsync.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import measure
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

SMALL = (256,)  # 1 KB of float32
BIG = (3000, 1000)  # 12 MB
TOGETHER = 10  # weights in a layer

SIZES = {  # how many small leaves, how many big ones, and so many times the rounds
    "100 leaves of 1 KB": (100, 0, 6),
    "1000 leaves of 1 KB": (1000, 0, 2),
    "5000 leaves of 1 KB": (5000, 0, 1),
    "500 MB: 2000 leaves of 1 KB, 41 of 12 MB": (2000, 41, 1),
}
TREE, PACKED = "kfb tree", "kfb packed"
SAME, DEFAULT = "Orbax, uncompressed as ours", "Orbax, default"
CALLBACK, H5, TENSORS, SYNCED = "OrbaxCheckpoint", ".weights.h5", "safetensors", "safetensors, on disk"


class Weights(keras.layers.Layer):
    """A layer of some weights, which computes nothing."""

    def __init__(self, shapes: list, **kwargs: Any):
        super().__init__(**kwargs)
        self.shapes = shapes

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        for i, shape in enumerate(self.shapes):
            self.add_weight(shape=shape, initializer="zeros", name=f"weight_{i}")

    def call(self, x: Any) -> Any:
        """Its input."""
        return x

    def get_config(self) -> dict[str, Any]:
        """As Keras wants it."""
        return {**super().get_config(), "shapes": self.shapes}


def model_of(shapes: list) -> keras.Model:
    parts = [shapes[i : i + TOGETHER] for i in range(0, len(shapes), TOGETHER)]
    layers = [Weights(part, name=f"layer_{i}") for i, part in enumerate(parts)]
    model = keras.Sequential([keras.Input((1,)), *layers], name="model")
    model.compile("sgd")  # without slots; the callback reads the optimizer of whatever it saves
    return model


def state_of(model: keras.Model) -> kfb.TrainState:
    return kfb.TrainState.from_keras(model, optimizer=optax.identity())


class Subject(NamedTuple):
    """What is saved, and what it is restored into."""

    model: keras.Model
    state: kfb.TrainState
    receiver: keras.Model
    like: kfb.TrainState

    @classmethod
    def of(cls, shapes: list) -> Subject:
        """A model of weights of these shapes."""
        rng = np.random.default_rng(0)
        model = model_of(shapes)
        model.set_weights([rng.normal(size=shape).astype("float32") for shape in shapes])
        state = state_of(model)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        return cls(model, state, model_of(shapes), like)

    def require_equal(self, params: Any) -> None:
        """Checks that weights are equal bits with those that were saved."""
        found, saved = (flatten_dict(tree, sep="/") for tree in (params, self.state.params))
        assert found.keys() == saved.keys()
        for name, leaf in saved.items():
            assert np.array_equal(np.asarray(found[name]).view("u4"), np.asarray(leaf).view("u4")), name


# --- the competitors: each saves into a folder, and restores from it --------------------------------


def by_bridge(subject: Subject, clock: measure.Clock, folder: Path, *, layout: str) -> Any:
    with kfb.CheckpointManager(folder, layout=layout) as manager, clock("save"):
        with clock("save blocks"):
            manager.save(subject.state)
        manager.wait()
    with clock("restore"):
        restored = jax.block_until_ready(kfb.restore(folder, subject.like))
    return restored.params


def _plain(state: kfb.TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params}


def by_orbax(subject: Subject, clock: measure.Clock, folder: Path, *, compressed: bool) -> Any:
    context = ocp.Context()
    context.array.saving.use_compression = compressed
    with ocp.training.Checkpointer(folder, context=context) as checkpointer, clock("save"):
        with clock("save blocks"):
            response = checkpointer.save_checkpointables_async(0, {"state": _plain(subject.state)})
        response.result()
    with clock("restore"):
        restored = ocp.load_checkpointables(folder / "0", {"state": _plain(subject.like)})["state"]
        jax.block_until_ready(restored)
    return restored["params"]


def _into_model(subject: Subject, clock: measure.Clock, path: Path) -> Any:
    for variable in subject.receiver.weights:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    with clock("restore"):
        subject.receiver.load_weights(path)
        jax.block_until_ready([variable.value for variable in subject.receiver.weights])
    return state_of(subject.receiver).params


def by_callback(subject: Subject, clock: measure.Clock, folder: Path) -> Any:
    callback = keras.callbacks.OrbaxCheckpoint(folder, monitor="loss", save_weights_only=True)
    callback.set_model(subject.model)
    with clock("save"):
        with clock("save blocks"):
            callback.on_epoch_end(0)
        callback.wait_until_finished()
    callback.on_train_end()
    return _into_model(subject, clock, folder)


def by_h5(subject: Subject, clock: measure.Clock, folder: Path) -> Any:
    with clock("save"), clock("save blocks"):
        subject.model.save_weights(folder / "model.weights.h5")
    return _into_model(subject, clock, folder / "model.weights.h5")


def by_safetensors(subject: Subject, clock: measure.Clock, folder: Path, *, synced: bool) -> Any:
    from safetensors.flax import load_file, save_file

    file, flat = folder / "model.safetensors", flatten_dict(subject.state.params, sep="/")
    with clock("save"), clock("save blocks"):
        save_file(flat, file)
        if synced:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
    with clock("restore"):
        restored = jax.block_until_ready(load_file(file))
    return unflatten_dict(restored, sep="/")


COMPETITORS: dict[str, Callable[..., Any]] = {
    TREE: partial(by_bridge, layout="tree"),
    SAME: partial(by_orbax, compressed=False),
    PACKED: partial(by_bridge, layout="packed"),
    DEFAULT: partial(by_orbax, compressed=True),
    CALLBACK: by_callback,
    H5: by_h5,
    TENSORS: partial(by_safetensors, synced=False),
    SYNCED: partial(by_safetensors, synced=True),
}


def in_fresh_folder(competitor: Callable[..., Any], subject: Subject) -> measure.Competitor:
    def run(clock: measure.Clock) -> Any:
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            return competitor(subject, clock, Path(folder))

    return run


def targets(leaves: int, big: bool) -> Iterator[measure.Target]:
    """The tree layout costs what Orbax costs; the packed one a tenth; no more than a bare file."""
    for other in (SAME, DEFAULT):
        for phase in ("save", "save blocks", "restore"):
            yield measure.Target(phase, TREE, other, 1.05)
    for other in (SAME, DEFAULT):
        for phase in ("save", "save blocks", "restore"):
            yield measure.Target(phase, PACKED, other, 0.1 if leaves >= 1000 and not big else None)
    for other in (TENSORS, SYNCED):
        yield measure.Target("save", PACKED, other, 1.2 if big else None)
        yield measure.Target("restore", PACKED, other)


def works(smoke: bool) -> Iterator[measure.Work]:
    """A row for every size."""
    missing = {TENSORS, SYNCED} if find_spec("safetensors") is None else set()
    for name in sorted(missing):
        measure.console.print(f"{name}: left out, the package is not installed")
    for name, (small, big, times) in {"smoke": (12, 1, 1)}.items() if smoke else SIZES.items():
        subject = Subject.of([SMALL] * small + [BIG] * big)
        entered = {key: value for key, value in COMPETITORS.items() if key not in missing}
        rows = {key: in_fresh_folder(value, subject) for key, value in entered.items()}
        wanted = [t for t in targets(small, big > 0) if t.against not in missing]
        yield measure.Work(name, rows, wanted, subject.require_equal, times)


if __name__ == "__main__":
    measure.main("checkpoint", works, packages=("h5py", "safetensors", "tensorstore"))
