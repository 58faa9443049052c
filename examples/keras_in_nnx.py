"""Keras layers inside a Flax NNX model: one nnx.Optimizer, one nnx.jit for both kinds.

Run it with ``python examples/keras_in_nnx.py``; it needs the ``examples`` extra.
"""

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BATCH, EPOCHS = 32, 10


class Classifier(nnx.Module):
    """An image encoder of Keras layers under a head of Flax ones."""

    def __init__(self, rngs: nnx.Rngs):
        layers = keras.layers
        encoder = keras.Sequential(
            [
                layers.Conv2D(16, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.Activation("relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dropout(0.3),
            ]
        )
        self.encoder = kfb.ToNNX(encoder, rngs=rngs, shape=(None, 8, 8, 1))
        self.hidden = nnx.Linear(256, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.logits = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """The logits of images."""
        return self.logits(self.dropout(nnx.relu(self.hidden(self.encoder(x)))))


@nnx.jit
def train_step(model, optimizer, x, y):
    """One step; BatchNormalization's statistics and all seeds are updated in the model."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def main():
    """Trains, and says what Flax sees of the Keras layers."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
    model = Classifier(nnx.Rngs(0))
    for kind in (nnx.Param, nnx.BatchStat, nnx.RngState):
        paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, kind))]
        print(f"{kind.__name__:<10}", ", ".join(path for path in paths if path.startswith("encoder")))

    optimizer = nnx.Optimizer(model, optax.adamw(2e-3), wrt=nnx.Param)
    order = np.random.default_rng(0)
    model.train()  # reaches the Keras layers, too
    for epoch in range(EPOCHS):
        rows = order.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        losses = [train_step(model, optimizer, x[i], y[i]) for i in rows]
        if epoch in (0, EPOCHS - 1):
            print(f"epoch {epoch + 1:>2}: loss {np.mean(losses):.3f}")
    model.eval()
    accuracy = float(jnp.mean(jnp.argmax(model(x_test), -1) == y_test))
    print(f"accuracy on {len(x_test)} held-out images: {accuracy:.3f}")
    assert accuracy > 0.95, accuracy


if __name__ == "__main__":
    main()
