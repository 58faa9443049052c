"""Keras layers inside a Flax Linen model, trained by a step that any Linen codebase has.

Run it with ``python examples/keras_in_linen.py``; it needs the ``examples`` extra.
"""

from typing import Any

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH, EPOCHS = 32, 15
MUTABLE = ["batch_stats", "seeds"]


class TrainState(train_state.TrainState):
    """Flax's, with the collections that calls update."""

    others: Any


class Classifier(nn.Module):
    """Rows of an image as a sequence: a bidirectional GRU of Keras's between layers of Flax."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        """The logits of images."""
        x = nn.relu(nn.Dense(32)(x))
        layers = keras.layers
        encoder = keras.Sequential(
            [layers.Bidirectional(layers.GRU(32)), layers.BatchNormalization(), layers.Dropout(0.3)]
        )
        x = kfb.ToLinen(encoder, training=self.training, name="keras")(x)
        return nn.Dense(10)(x)


@jax.jit
def train_step(state, x, y, key):
    """One step; dropout draws from `key`."""

    def loss_fn(params):
        variables = {"params": params, **state.others}
        logits, updates = Classifier(training=True).apply(
            variables, x, mutable=MUTABLE, rngs={"dropout": key}
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

    (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, others={**state.others, **updates}), loss


def main():
    """Trains, and says what Flax sees of the Keras layers."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
    variables = Classifier().init(jax.random.key(0), x[:1])
    for name, tree in variables.items():
        paths = [
            jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(tree)
        ]
        print(f"{name:<12}", ", ".join(path for path in paths if path.startswith("keras")))

    params = variables.pop("params")
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adamw(3e-3), others=variables)
    order, key = np.random.default_rng(0), jax.random.key(1)
    for epoch in range(EPOCHS):
        rows = order.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        losses = []
        for i in rows:
            state, loss = train_step(state, x[i], y[i], jax.random.fold_in(key, state.step))
            losses.append(loss)
        if epoch in (0, EPOCHS - 1):
            print(f"epoch {epoch + 1:>2}: loss {np.mean(losses):.3f}")
    logits = Classifier().apply({"params": state.params, **state.others}, x_test)
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == y_test))
    print(f"accuracy on {len(x_test)} held-out images: {accuracy:.3f}")
    assert accuracy > 0.93, accuracy


if __name__ == "__main__":
    main()
