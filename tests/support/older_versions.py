"""What a version of the package writes, one artifact of each kind, and the leaves that it holds.

The version that is to be kept writes the data, and later ones read it in
`tests/checkpoint/test_older_versions.py`:

    KERAS_BACKEND=jax PYTHONPATH=CHECKOUT_OF_THAT_VERSION python tests/support/older_versions.py FOLDER

`tests/support/data_sets.py` lists the folder.
"""

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx
from keras import layers, optimizers

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate

X, Y = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4), np.ones((6, 2), "float32")
STEPS = 2
# what the configs have that Keras 3.15 wrote, and no older one reads
CONFIGS = ("layers with quantization_config", "initializers with input_axes")


# --- what is saved, and what it is restored into


def build():
    """A small model with statistics, a seed, slots and metrics."""
    body = [layers.Dense(3, name="hidden"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def small():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="one"), layers.Dense(1, name="two")])
    optimizer = optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "mse")
    return model


def several():
    return {"encoder": small(), "decoder": small()}


def with_optax():
    return kfb.TrainState.from_keras(build()).to_optax()


def kinds(layout):
    """Leaves of every kind: dtypes that Orbax lacks, no elements, keys, numbers, names with dots."""
    large = {"large": np.tile(np.arange(10, dtype="uint8"), 6600)}  # not packed with the others
    return {
        **(large if layout == "packed" else {}),
        "a.b": {"kernel%2E": np.ones((2, 3), "float32"), "half": jnp.arange(3, dtype="bfloat16")},
        "uint4": np.arange(6).astype(jnp.uint4).reshape(2, 3),
        "float8": np.arange(4).astype(jnp.float8_e4m3),
        "empty": np.zeros((0, 2), "float32"),
        "key": jax.random.key(3),
        "complex": np.array([1 + 2j], "complex64"),
        "count": 7,
        "rate": 0.25,
    }


class Counter:
    """An iterator that says where it stands as JSON."""

    def __init__(self):
        self.place = {"epoch": 0, "seen": []}

    def get_state(self):
        return self.place

    def set_state(self, place):
        self.place = place


def grains():
    return iter(grain.MapDataset.range(10).to_iter_dataset())


def trained(model):
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model, donate=False)
    for _ in range(STEPS):
        state, _ = train_step(state, (X, Y))
        yield state


def stepped(state):
    """A state after one step in which each gradient is of ones."""
    return state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))


def spec(leaf):
    """A leaf as JSON: dtype, shape and bytes."""
    is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
    return [str(array.dtype), list(np.shape(leaf)), base64.b64encode(zlib.compress(array.tobytes())).decode()]


def specs(tree):
    """The leaves of a tree, or of an `nnx.Module`, as JSON."""
    tree = values(tree) if isinstance(tree, nnx.Module) else tree
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): spec(leaf) for path, leaf in leaves}


# what each artifact is restored into
LIKES = {
    "model": lambda: kfb.TrainState.from_keras(build()),
    "packed": lambda: kfb.TrainState.from_keras(build()),
    "kinds_tree": lambda: {**kinds("tree"), "count": 0, "rate": 0.0},
    "kinds_packed": lambda: {**kinds("packed"), "count": 0, "rate": 0.0},
    "several": lambda: kfb.TrainState.from_keras(several()),
    "optax": with_optax,
    "module": lambda: migrate.to_nnx(build()),
}


# --- what is written


def write(folder):
    """Writes one of each kind, and `expected.json` with what is in them."""
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(7)
    states = list(trained(build()))
    expected = {"model": specs(states[-1])}
    kfb.save(folder / "model", states[-1])
    kfb.save(folder / "packed", states[-1], layout="packed")
    for layout in ("tree", "packed"):
        kfb.save(folder / f"kinds_{layout}", kinds(layout), layout=layout)
        expected[f"kinds_{layout}"] = specs(kinds(layout))
    _run(folder / "run", states)
    expected["first"] = specs(states[0])
    parts = stepped(stepped(kfb.TrainState.from_keras(several())))
    kfb.save(folder / "several", parts)
    expected["several"] = specs(parts)
    state = stepped(with_optax())
    kfb.save(folder / "optax", state)
    expected["optax"] = specs(state)
    module = migrate.to_nnx(load(states[-1]))
    kfb.save(folder / "module", module)
    expected["module"] = specs(module)
    module.weight_map.save(folder / "map.json")
    for name in ("model.keras", "model.safetensors"):
        convert = [sys.executable, "-m", "keras_flax_bridge", "convert"]
        subprocess.run([*convert, folder / "model", folder / name], check=True, stdout=subprocess.DEVNULL)
    (folder / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


def values(module):
    """The leaves of a module by path, whatever version of Flax it is of."""
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in state}


def load(state):
    """A model with the weights of a state."""
    model = build()
    state.assign_to(model)
    return model


def _run(folder, states):
    """A folder of two steps with logs and the positions of two kinds of iterators."""
    counter, data = Counter(), grains()
    with kfb.CheckpointManager(folder, keep_best=("loss", "min")) as manager:
        for number, state in enumerate(states):
            counter.place = {"epoch": number, "seen": [number, "a"]}
            manager.save(state, data=data if number else counter, logs={"loss": 1.0 / (number + 1)})
            next(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
