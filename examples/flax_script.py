"""A Flax training script as people write it; its model becomes a Keras model by changing one line.

Run it with ``python examples/flax_script.py``; it needs the ``examples`` extra. The script's own step,
written against `state.apply_fn`, `state.params` and `state.apply_gradients`, trains both.
"""

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import flax.linen as nn
import jax
import keras
import numpy as np
import optax
from flax.training import train_state
from sklearn.datasets import load_digits

BATCH, EPOCHS, TX = 32, 8, optax.adam(2e-3)


class Network(nn.Module):
    """The model that the script was written for."""

    @nn.compact
    def __call__(self, x):
        """Logits of the ten digits."""
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


def of_flax(x):
    """The script's state before."""
    model = Network()
    params = model.init(jax.random.key(0), x[:1])["params"]
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=TX)


def of_keras(x):
    """And after: a Keras model, and one line that makes the state."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
    return kfb.TrainState.from_keras(model, optimizer=TX)


@jax.jit
def step(state, x, y):
    """Knows Flax's `TrainState` and nothing else."""

    def loss_of(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def accuracy(state, x, y):
    """The share of right answers."""
    return float((state.apply_fn({"params": state.params}, x).argmax(-1) == y).mean())


def train(state, x, y):
    """The script's loop."""
    for _ in range(EPOCHS):
        for i in range(0, len(x), BATCH):
            state, loss = step(state, x[i : i + BATCH], y[i : i + BATCH])
    return state, float(loss)


def main():
    """Trains both models by the same script."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype("float32") / 16, y[order]
    for name, make in (("Flax model", of_flax), ("Keras model", of_keras)):
        state, loss = train(make(x), x[:1440], y[:1440])
        right = accuracy(state, x[1440:], y[1440:])
        print(f"{name}: step {int(state.step)}, loss {loss:.3f}, accuracy on held-out digits {right:.3f}")
        assert right > 0.93


if __name__ == "__main__":
    main()
