"""Flax modules inside a Keras model: compile, fit, a .keras file, and the module's values back in Flax.

Run it with ``python examples/flax_in_keras.py``; it needs the ``examples`` extra.
"""

from pathlib import Path
from tempfile import mkdtemp

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import keras
import numpy as np
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Encoder(nnx.Module):
    """An NNX module as anyone writes it: no argument says that it trains."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        """Features of images, as rows."""
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), strides=(2, 2))
        return self.dropout(x.reshape(len(x), -1))


class Head(nn.Module):
    """A Linen module, told by ``train``."""

    @nn.compact
    def __call__(self, x, train: bool):
        """Logits."""
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x)))
        return nn.Dense(10)(nn.Dropout(0.3, deterministic=not train)(x))


@keras.saving.register_keras_serializable("examples")
def encoder(rngs: nnx.Rngs) -> Encoder:
    """How a file makes the module again."""
    return Encoder(16, rngs)


@keras.saving.register_keras_serializable("examples")
def head() -> Head:
    """The same for the other one."""
    return Head()


def build():
    """A Keras model of an NNX module and a Linen module."""
    keras.utils.set_random_seed(0)
    layers = [kfb.NNXLayer(encoder, name="encoder"), kfb.LinenLayer(head, name="head")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(2e-3), loss, metrics=["accuracy"])
    return model


def main():
    """Fits, saves, loads, and goes on in Flax."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
    model = build()
    print("trainable:    ", ", ".join(v.path for v in model.trainable_weights))
    print("non-trainable:", ", ".join(v.path for v in model.non_trainable_weights))
    history = model.fit(x, y, batch_size=32, epochs=12, verbose=0).history
    print(f"loss {history['loss'][0]:.3f} to {history['loss'][-1]:.3f}")
    accuracy = model.evaluate(x_test, y_test, verbose=0)[1]
    print(f"accuracy on {len(x_test)} held-out images: {accuracy:.3f}")

    path = Path(mkdtemp(prefix="flax-in-keras-")) / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    wanted = model.predict(x_test, verbose=0)
    same = np.array_equal(loaded.predict(x_test, verbose=0), wanted)
    print(f"{path.name}: the same outputs: {same}")
    module = kfb.ToNNX(model)  # and all of it as an NNX module
    difference = float(np.max(np.abs(module(x_test) - wanted)))
    print(f"as an NNX module: kernel {module.encoder.conv.kernel.shape}, within {difference:.1e}")
    assert same, "the file lost something"
    assert difference < 1e-4, difference
    assert accuracy > 0.95, accuracy


if __name__ == "__main__":
    main()
