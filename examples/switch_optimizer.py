"""A training run that changes sides: `fit`, then a pure optax loop, then `fit` again, on one loss curve.

Run it with ``python examples/switch_optimizer.py [--output curves.png]``; it needs the ``examples`` extra.
"""

import argparse
from pathlib import Path
from tempfile import mkdtemp

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

BATCH, EPOCHS = 32, 5  # epochs of each of the three parts


def data():
    """Handwritten digits in [0, 1], as many as fill whole batches, and labels."""
    x, y = load_digits(return_X_y=True)
    rows = len(x) // BATCH * BATCH
    return x[:rows].astype("float32") / 16, y[:rows]


def build():
    """A classifier whose optimizer has a lot to carry over: moments, a schedule, accumulated gradients."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.005, 1000),
        weight_decay=0.01,
        global_clipnorm=1.0,
        gradient_accumulation_steps=3,  # 56 batches an epoch: the switch comes in the middle of a cycle
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def in_keras(model, x, y, epochs):
    """Trains by `fit`; returns the loss of every epoch."""
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, epochs=epochs, verbose=0)
    return history.history["loss"]


def in_optax(model, x, y, epochs):
    """Trains by optax alone; returns the same, and leaves weights and slots in the model."""
    state = kfb.TrainState.from_keras(model).to_optax()

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(params):
            logits = state.apply_fn({"params": params}, x, training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = state.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params, opt_state, losses = state.params, state.opt_state, []
    for _ in range(epochs):
        values = []
        for start in range(0, len(x), BATCH):
            rows = slice(start, start + BATCH)
            params, opt_state, value = step(params, opt_state, x[rows], y[rows])
            values.append(value)
        losses.append(float(np.mean(values)))
    # counts, moments and the half-filled accumulator go back as well
    state.replace(params=params, opt_state=opt_state).to_keras(model).assign_to(model)
    return losses


def main():
    """Trains both ways, compares, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=None, help="where the curves go, a PNG")
    output = parser.parse_args().output or Path(mkdtemp(prefix="switch-")) / "curves.png"
    x, y = data()
    alone = in_keras(build(), x, y, 3 * EPOCHS)
    model = build()
    parts = [train(model, x, y, EPOCHS) for train in (in_keras, in_optax, in_keras)]
    difference = float(np.max(np.abs(np.concatenate(parts) - alone)))
    print(f"{len(alone)} epochs, loss {alone[0]:.3f} to {alone[-1]:.3f}; switched: within {difference:.1e}")
    assert difference < 1e-5, difference
    plt.figure(figsize=(8, 4), layout="constrained")
    plt.plot(range(1, len(alone) + 1), alone, color="0.8", linewidth=8, label="fit alone")
    for i, (part, name) in enumerate(zip(parts, ("fit", "optax", "fit again"), strict=True)):
        plt.plot(np.arange(1, EPOCHS + 1) + i * EPOCHS, part, "o-", label=name)
    plt.gca().set(xlabel="epoch", ylabel="loss", yscale="log")
    plt.legend()
    plt.savefig(output, dpi=120)
    print(f"curves: {output}")


if __name__ == "__main__":
    main()
