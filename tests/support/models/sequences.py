"""Masks and weights of samples."""

import keras
from keras import layers


def recurrent() -> keras.Model:
    """Masks from an embedding, dropout inside an RNN, a wrapper, sample weights."""
    keras.utils.set_random_seed(30)
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 3, mask_zero=True),
            layers.Bidirectional(layers.LSTM(3, dropout=0.2, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(2, "softmax")),
        ]
    )
    model.compile("nadam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model


def masked() -> keras.Model:
    """A mask that reaches the loss, from values and through layers that pass it on."""
    keras.utils.set_random_seed(31)
    model = keras.Sequential(
        [
            keras.Input((5, 2)),
            layers.Masking(0.0),
            layers.SimpleRNN(3, return_sequences=True),
            layers.Dropout(0.1),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model


def weighted() -> keras.Model:
    """Two outputs, each with sample weights of its own."""
    keras.utils.set_random_seed(32)
    x = keras.Input((4,))
    model = keras.Model(x, {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(3, "softmax", name="b")(x)})
    model.compile(
        "adam",
        {"a": "mse", "b": "sparse_categorical_crossentropy"},
        weighted_metrics={"a": ["mae"], "b": ["accuracy"]},
    )
    return model
