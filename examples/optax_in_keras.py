"""An optax transformation inside `compile` and `fit`, with a callback that sets its learning rate.

Run it with ``python examples/optax_in_keras.py``; it needs the ``examples`` extra. The `.keras` file holds
the state of the transformation: training that goes on from it ends with the bits of one without a break.
"""

from pathlib import Path
from tempfile import mkdtemp

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import keras
import numpy as np
import optax
from sklearn.datasets import load_digits


@keras.saving.register_keras_serializable("examples")
def noisy_lamb(learning_rate=0.01, eta=0.001):
    """A chain that Keras has no optimizer for: LAMB on gradients with noise that dies away."""
    return optax.chain(optax.add_noise(eta, gamma=0.55, key=0), optax.lamb(learning_rate))


def build():
    """A classifier of digits."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = kfb.OptaxOptimizer(noisy_lamb, learning_rate=0.01)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def fit(model, x, y, first, last):
    """Epochs of `fit`; a stock callback sets the learning rate of the optax chain."""
    decay = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * 0.8**epoch)
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=last, initial_epoch=first, callbacks=[decay], **options)


def main():
    """Trains without a break, and with one; compares."""
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    whole = build()
    history = fit(whole, x, y, 0, 8)
    broken, file = build(), Path(mkdtemp()) / "half_way.keras"
    fit(broken, x, y, 0, 4)
    broken.save(file)
    resumed = keras.models.load_model(file)
    fit(resumed, x, y, 4, 8)
    same = all(np.array_equal(a, b) for a, b in zip(whole.weights, resumed.weights, strict=True))
    print(f"accuracy by epoch: {', '.join(f'{value:.3f}' for value in history.history['accuracy'])}")
    print(f"learning rate of the chain at the end: {float(whole.optimizer.learning_rate):.5f}")
    print(f"slots of the chain: {len(whole.optimizer.variables)} variables")
    print(f"saved and loaded half way, the weights at the end are the same bits: {same}")
    assert same


if __name__ == "__main__":
    main()
