"""Whole models to migrate: masks, skips, several inputs, shared and nested parts, operations between."""

from typing import Any

import keras
from keras import layers as L
from keras import ops


def transformer(depth: int = 2, size: int = 8, heads: int = 2, dropout: float = 0.1) -> keras.Model:
    """Token ids, positions, and layers that all see the mask."""
    ids = keras.Input((6,), dtype="int32")
    x = L.Embedding(20, size, mask_zero=True)(ids)
    for _ in range(depth):
        attended = L.MultiHeadAttention(heads, size // heads, dropout=dropout)(x, x)
        x = L.LayerNormalization()(L.Add()([x, L.Dropout(dropout)(attended)]))
        hidden = L.Dense(2 * size, "gelu")(x)
        x = L.LayerNormalization()(L.Add()([x, L.Dropout(dropout)(L.Dense(size)(hidden))]))
    return keras.Model(ids, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def tagger() -> keras.Model:
    """A bidirectional LSTM with masking, of an open length."""
    ids = keras.Input((None,), dtype="int32")
    x = L.Embedding(20, 4, mask_zero=True)(ids)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(x)
    x = L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")(x)
    return keras.Model(ids, L.Dense(5, "softmax")(x))


def unet() -> keras.Model:
    """Skips across the whole depth."""

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = L.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = L.Activation("relu")(L.BatchNormalization()(x))
        return x

    image = keras.Input((16, 16, 3))
    skips, x = [], image
    for filters in (4, 8):
        skips.append(block(x, filters))
        x = L.MaxPooling2D()(skips[-1])
    x = block(x, 16)
    for filters, skip in zip((8, 4), reversed(skips), strict=True):
        x = L.Conv2DTranspose(filters, 2, strides=2)(x)
        x = block(L.Concatenate()([x, skip]), filters)
    return keras.Model(image, L.Conv2D(2, 1)(x))


def inputs_and_outputs() -> keras.Model:
    """Dicts in and out, a shared layer, a nested model used twice, one of no names, a frozen layer."""
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="class")
    shared = L.Dense(4, "relu", name="shared")
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, "tanh"), L.BatchNormalization()], name="inner")
    frozen = L.Dense(4, trainable=False)
    a, b = inner(shared(left)), inner(frozen(shared(right)))
    return keras.Model({"left": left, "class": right}, {"sum": a + b, "both": [a, L.Dense(1)(b * 2.0)]})


def operations() -> keras.Model:
    """keras.ops between layers."""
    x = keras.Input((4, 6))
    y = L.Dense(6)(x)
    y = ops.concatenate([y[:, 1:], y[:, :1]], axis=1)
    y = ops.softmax(ops.matmul(y, ops.transpose(x, (0, 2, 1))), axis=-1)
    y = ops.reshape(ops.mean(y, axis=1), (-1, 2, 2))
    first, second = ops.split(y, 2, axis=1)
    y = ops.where(first > second, ops.exp(first), -second) ** 2 / 3.0
    y = ops.squeeze(y, 1) + ops.cast(ops.argmax(x, axis=-1), "float32")[:, :2]
    return keras.Model(x, ops.stack([y, ops.maximum(y, 0.1)], axis=-1))


class Block(L.Layer):
    """A layer of the user's own without a rule, which draws."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense = [L.Dense(4, "relu"), L.Dense(4)]
        self.norm = L.LayerNormalization()

    def call(self, x: Any) -> Any:
        y = x
        for dense in self.dense:
            y = dense(y)
        return self.norm(x + y)


class Subclassed(keras.Model):
    """Blocks in a list, a weight of its own, dropout and moving statistics."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.parts = [Block() for _ in range(3)]
        self.drop = L.Dropout(0.3)
        self.norm = L.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(4,), name="w", initializer="normal")

    def call(self, x: Any, training: bool = False) -> Any:
        for part in self.parts:
            x = part(x)
        return self.norm(self.drop(x * self.w, training=training), training=training)
