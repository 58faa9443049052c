"""One trained model as every kind of file and folder that the command line reads."""

import importlib.util
import warnings

import keras
import numpy as np
import orbax.checkpoint as ocp
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.paths import flatten_tree, join_path, nest_paths

X, Y = np.ones((4, 6), "float32"), np.ones((4, 3), "float32")
HAS_SAFETENSORS = importlib.util.find_spec("safetensors") is not None


def build():
    body = [layers.Dense(4, name="first"), layers.BatchNormalization(), layers.Dropout(0.1), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *body])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def write(folder):
    """Writes all kinds, each by the code that it is of, and gives the state."""
    model = build()
    savers = [kind(str(folder / "orbax")) for kind in compat.kinds("OrbaxCheckpoint")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Orbax, about options that Keras leaves out
        model.fit(X, Y, verbose=0, callbacks=savers)
    state = kfb.TrainState.from_keras(model)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    kfb.save(folder / "tree", state)
    kfb.save(folder / "packed", state, layout="packed")
    flat = {path: np.asarray(leaf) for path, leaf in flatten_tree(state).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "flax", nest_paths(flat))
    if HAS_SAFETENSORS:
        from safetensors.numpy import save_file

        save_file({join_path(path): leaf for path, leaf in flat.items()}, folder / "model.safetensors")
    return state
