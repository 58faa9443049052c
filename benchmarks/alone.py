"""What needs a process of its own: ``python benchmarks/alone.py WHAT [FOLDER] [WIDTH]`` prints one number.

Peaks are megabytes of resident memory beyond what the process held before; imports are seconds.
"""

import gc
import importlib
import os
import resource
import sys
import time


def peak(act):
    """Megabytes that the peak of resident memory grew by, at most 1 less: it is counted in kilobytes."""
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    act()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before


def built(width):
    import keras

    layers = [keras.layers.Dense(width) for _ in range(3)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    model.compile("adam", keras.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    return model


def trained(step, state, width):
    import jax
    import numpy as np

    batch = np.ones((8, width), "float32"), np.ones((8, width), "float32")
    for _ in range(3):
        state, _ = step(state, batch)
    jax.block_until_ready(jax.tree.leaves(state))


def training_with_the_bridge(folder, width):
    import keras_flax_bridge as kfb

    model = built(width)
    step = kfb.make_train_step(model)
    return peak(lambda: trained(step, kfb.TrainState.from_keras(model, copy=False), width))


def training_by_hand(folder, width):
    import peers
    import jax

    model = built(width)
    state = tuple([v.value for v in part] for part in peers.variables(model))
    return peak(lambda: trained(jax.jit(peers.plain_step(model), donate_argnums=0), state, width))


def saving(folder, width):
    import keras_flax_bridge as kfb
    import jax

    state = kfb.TrainState.from_keras(built(width))
    kfb.save(folder, state)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20


def restoring(folder, width):
    import keras_flax_bridge as kfb
    import jax

    abstract = kfb.TrainState.abstract(lambda: built(width))
    from keras_flax_bridge.checkpoint.orbax_io.api import ocp

    ocp()  # what Orbax's import takes is not measured
    return peak(lambda: jax.block_until_ready(jax.tree.leaves(kfb.restore(folder, abstract))))


def restoring_on_a_mesh(folder, width):
    """Onto eight devices, every matrix in eight parts."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import keras_flax_bridge as kfb
    import jax
    from jax.sharding import PartitionSpec as P

    mesh = jax.sharding.Mesh(jax.devices()[:8], ("data",))
    abstract = kfb.shard(kfb.TrainState.abstract(lambda: built(width)), mesh, [("kernel", P("data"))])
    from keras_flax_bridge.checkpoint.orbax_io.api import ocp

    ocp()
    return peak(lambda: jax.block_until_ready(jax.tree.leaves(kfb.restore(folder, abstract))))


def stepping(folder, width):
    """The bare step in a for loop, as a ratio to the one written by hand: medians of rounds in turn."""
    import peers
    from statistics import median
    from steps import cut, data

    batches = cut(*data(100, (784,), 32), 32)
    loops = [looped(*peers.by_bridge(peers.mlp()), batches), looped(*peers.by_hand(peers.mlp()), batches)]
    seconds = [[], []]
    for turn in range(-2, width):
        for number in (0, 1) if turn % 2 else (1, 0):
            took = loops[number]()
            if turn >= 0:
                seconds[number].append(took)
    return median(seconds[0]) / median(seconds[1])


def looped(step, state, batches):
    """Calls a step on each batch, from where the last call ended; gives the seconds."""
    import jax

    held = [jax.block_until_ready(state)]

    def once():
        begin = time.perf_counter()
        for batch in batches:
            held[0] = step(held[0], batch)
        jax.block_until_ready(held[0])
        return time.perf_counter() - begin

    return once


def importing(folder, width):
    os.environ["KERAS_BACKEND"] = "jax"
    for name in ("keras", "flax.nnx", "flax.linen"):
        importlib.import_module(name)
    gc.collect()  # of what the others left
    begin = time.perf_counter()
    importlib.import_module("keras_flax_bridge")
    return time.perf_counter() - begin


if __name__ == "__main__":
    what, folder, width = [*sys.argv[1:], "", "256"][:3]
    print(globals()[what](folder, int(width)))
