"""One model on eight devices in four layouts: the same loss, other bytes on each device.

Run it with ``python examples/multi_device.py``; it makes eight virtual devices out of the CPU and needs
the ``examples`` extra.
"""

import math
import os
from tempfile import mkdtemp

# before jax looks for devices; the second, for a busy machine: how long one may wait for the others
FLAGS = "force_host_platform_device_count=8", "cpu_collective_call_terminate_timeout_seconds=600"
os.environ["XLA_FLAGS"] = " ".join(f"--xla_{flag}" for flag in FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import grain
import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

STEPS, ROWS = 150, 64
COLUMNS = [("wide/kernel", P(None, "model")), ("wide/bias", P("model")), ("narrow/kernel", P("model", None))]
WHOLE = [("(wide|narrow)/kernel", P("data"))]
LAYOUTS = {  # the mesh, the rules, how a batch is split
    "data parallel": ({"data": 8}, [], P("data")),
    "FSDP": ({"data": 8}, WHOLE, P("data")),
    "tensor parallel": ({"model": 8}, COLUMNS, P()),
    "both": ({"data": 2, "model": 4}, COLUMNS, P("data")),
}


def build():
    """A classifier with random masks, which are the same in every layout."""
    keras.utils.set_random_seed(7)
    body = [
        layers.Dense(512, "relu", name="wide"),
        layers.Dropout(0.2),
        layers.Dense(64, "relu", name="narrow"),
    ]
    model = keras.Sequential([keras.Input((64,)), *body, layers.Dense(10, "softmax", name="head")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def batches():
    """Shuffled rows of handwritten digits, for ever."""
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    rows = grain.MapDataset.range(len(x)).seed(1).shuffle().repeat()
    return iter(rows.map(lambda i: (x[i], y[i])).batch(ROWS).to_iter_dataset())


def mesh_of(axes):
    """A mesh of the first devices, its axes by name."""
    devices = jax.devices()[: math.prod(axes.values())]
    return Mesh(np.reshape(devices, tuple(axes.values())), tuple(axes))


def train(axes, rules, batch_spec):
    """The final state, its logs, and what the rules took."""
    mesh, model, data = mesh_of(axes), build(), batches()
    state = kfb.TrainState.from_keras(model, batch=next(batches()))
    report = kfb.sharding_report(state, mesh, rules)
    train_step = kfb.make_train_step(model, mesh=mesh, rules=rules, batch_spec=batch_spec)
    for _ in range(STEPS):
        state, logs = train_step(state, next(data))
        jax.block_until_ready(logs)  # XLA may hang where a virtual device has many runs waiting
    return state, logs, report


def main():
    """Trains in every layout, then saves on eight devices and restores onto two."""
    console = Console()
    table = Table("layout", "mesh", "loss", "accuracy", "bytes on a device", title=f"{STEPS} steps of digits")
    for name, (axes, rules, batch_spec) in LAYOUTS.items():
        state, logs, report = train(axes, rules, batch_spec)
        loss, accuracy = float(logs["loss"]), float(logs["accuracy"])
        table.add_row(name, str(axes), f"{loss:.6f}", f"{accuracy:.4f}", f"{report.per_device:,}")
        console.print(f"[bold]{name}[/]\n{report}\n", highlight=False, soft_wrap=True)
    console.print(table)

    path = mkdtemp() + "/both"
    kfb.save(path, state)
    mesh = mesh_of({"model": 2})
    abstract = kfb.shard(kfb.TrainState.abstract(build, batch=next(batches())), mesh, COLUMNS)
    restored = kfb.restore(path, abstract)
    kernel = restored.params["wide"]["kernel"]
    console.print(f"saved on 8 devices, restored onto {len(kernel.devices())}: {tuple(kernel.sharding.spec)}")


if __name__ == "__main__":
    main()
