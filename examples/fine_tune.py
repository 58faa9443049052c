"""Freeze and fine-tune: a new head on a trained body, then the whole; the state follows the layers.

Run it with ``python examples/fine_tune.py``; it needs the ``examples`` extra. The body learns the digits 0
to 4; then a new head learns all ten on the frozen body, and at last everything trains.
"""

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import keras
import numpy as np
from sklearn.datasets import load_digits

BATCH = 32


def compiled(model, rate):
    """With what `make_train_step` takes from it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def body():
    """Layers that will be trained first and then frozen."""
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, "relu")(inputs)
    return keras.Model(inputs, keras.layers.BatchNormalization()(x), name="body")


def run(model, state, x, y, epochs):
    """Trains; returns the state and the last accuracy."""
    step = kfb.make_train_step(model)
    for _ in range(epochs):
        state = state.reset_metrics()
        for i in range(0, len(x), BATCH):
            state, logs = step(state, (x[i : i + BATCH], y[i : i + BATCH]))
    return state, float(logs["accuracy"])


def told(what, state, accuracy):
    """One line of the report."""
    count = sum(leaf.size for layer in state.params.values() for leaf in leaves(layer))
    print(f"{what:<24} {count:>5} trainable numbers, step {int(state.step):>4}, accuracy {accuracy:.3f}")


def leaves(tree):
    """The arrays of a nested dict."""
    return [tree] if not isinstance(tree, dict) else [x for value in tree.values() for x in leaves(value)]


def main():
    """Trains in three stages."""
    keras.utils.set_random_seed(2)
    x, y = load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    few = y < 5
    shared = body()
    first = compiled(keras.Sequential([keras.Input((64,)), shared, keras.layers.Dense(5)]), 2e-3)
    state, accuracy = run(first, kfb.TrainState.from_keras(first), x[few], y[few], 5)
    told("digits 0 to 4", state, accuracy)
    state.assign_to(first)  # the layers of the body hold what was learned

    shared.trainable = False
    model = compiled(keras.Sequential([keras.Input((64,)), shared, keras.layers.Dense(10)]), 2e-3)
    before = np.asarray(shared.layers[1].kernel.value)
    state, accuracy = run(model, kfb.TrainState.from_keras(model), x, y, 5)
    told("new head, frozen body", state, accuracy)
    state.assign_to(model)
    assert np.array_equal(before, shared.layers[1].kernel.value)

    shared.trainable = True
    compiled(model, 5e-4)
    state = state.repartition(
        model
    )  # the body's weights move among the trainable ones; the head keeps its slots
    state, accuracy = run(model, state, x, y, 5)
    told("everything", state, accuracy)
    state.assign_to(model)
    assert accuracy > 0.97


if __name__ == "__main__":
    main()
