"""Layers that prepare data, with state and without, inside the model."""

import keras
from keras import layers


def images() -> keras.Model:
    """Rescaling, random augmentation, cropping, resizing."""
    keras.utils.set_random_seed(60)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255, offset=-0.5),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomZoom(0.1),
            layers.RandomContrast(0.2),
            layers.CenterCrop(6, 6),
            layers.Resizing(5, 5),
            layers.Conv2D(2, 3),
            layers.GlobalMaxPooling2D(),
            layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    return model


def categories() -> keras.Model:
    """CategoryEncoding."""
    keras.utils.set_random_seed(61)
    x = keras.Input((2,), dtype="int32")
    hot = layers.CategoryEncoding(5, output_mode="multi_hot")(x)
    model = keras.Model(x, layers.Dense(1)(hot))
    model.compile("adam", "mse")
    return model
