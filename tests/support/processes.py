"""What one of several processes does; each is started anew, with two devices, and talks to the others."""

import grain
import jax
import keras
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from keras import layers

import keras_flax_bridge as kfb
from tests.support.subprocesses import together

ROWS = 16  # of a step, in all processes together
X = np.random.default_rng(0).standard_normal((320, 8)).astype("float32")
Y = np.random.default_rng(1).standard_normal((320, 4)).astype("float32")
RULES = [("kernel", P("data")), ("hidden/bias", P("data"))]


def build():
    keras.utils.set_random_seed(0)
    body = [layers.Dense(16, name="hidden"), layers.Dropout(0.3), layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *body])
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True), "mse", metrics=["mae"])
    return model


def rows():
    """This process's share of shuffled rows: of each step the first half here, the second there."""
    index, count = jax.process_index(), jax.process_count()
    steps = grain.MapDataset.range(len(X)).seed(3).shuffle().batch(ROWS)
    share = ROWS // count
    mine = slice(index * share, (index + 1) * share)
    return iter(steps.map(lambda i: (X[i][mine], Y[i][mine])).to_iter_dataset())


def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def train(folder, steps, layout="tree"):
    """Goes on from the newest checkpoint to a number of steps; saves at the end."""
    model, data = build(), rows()
    step = kfb.make_train_step(model, mesh=mesh(), rules=RULES)
    with kfb.CheckpointManager(folder, max_to_keep=None, layout=layout) as manager:
        state = kfb.shard(kfb.TrainState.from_keras(model, batch=(X[:2], Y[:2])), mesh(), RULES)
        if manager.latest_step is not None:
            state = manager.restore(state, data=data)
        while int(state.step) < steps:
            state, _ = step(state, next(data))
        manager.save(state, data=data)


def save_for_ever(folder):
    """Saves until somebody dies."""
    state = kfb.shard(kfb.TrainState.from_keras(build(), batch=(X[:2], Y[:2])), mesh(), RULES)
    with kfb.CheckpointManager(folder) as manager:
        for step in range(1, 10_000):
            manager.save(state.replace(step=state.step * 0 + step))
            manager.wait()
            print("saved", step, flush=True)


def run(count, act, *arguments):
    """Does the same in some processes, and returns when all have ended well."""
    processes = together(count, globals()[act], *arguments, distributed=count > 1)
    outputs = [process.communicate(timeout=150)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)[-6000:]
    return outputs
