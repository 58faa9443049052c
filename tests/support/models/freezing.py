"""Frozen weights, low-rank adaptation, quantized layers."""

import keras
from keras import layers


def frozen_before() -> keras.Model:
    """Frozen before it is built; its BatchNormalization then runs in inference mode."""
    keras.utils.set_random_seed(50)
    body = keras.Sequential([layers.Dense(4, "relu"), layers.BatchNormalization()], name="body")
    body.trainable = False
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(1)(body(x)))
    model.compile("adam", "mse")
    return model


def frozen_after() -> keras.Model:
    """Layers frozen after they were built."""
    keras.utils.set_random_seed(51)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Dense(1),
        ]
    )
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    return model


def lora() -> keras.Model:
    """`enable_lora` on Embedding, EinsumDense and Dense."""
    keras.utils.set_random_seed(52)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(7, 4),
            layers.EinsumDense("abc,cd->abd", (3, 4), bias_axes="d"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    for layer in (model.layers[0], model.layers[1], model.layers[3]):
        layer.enable_lora(2)
    model.compile("adam", "mse")
    return model


def quantized() -> keras.Model:
    """int8 kernels, which are not trained; biases and norms still are."""
    keras.utils.set_random_seed(53)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, "relu"), layers.LayerNormalization(), layers.Dense(2)]
    )
    for layer in (model.layers[0], model.layers[2]):
        layer.quantize("int8")
    model.compile("adam", "mse")
    return model
