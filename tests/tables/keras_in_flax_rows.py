"""The layers and models that go through every operation of `tests/interop.py`: one entry adds one.

Most are tiny: what is measured is whether a wrapped layer gives the layer's numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers as L

from tests.support.models import applications

RNG = np.random.default_rng(0)


class Row(NamedTuple):
    """A layer and what it is called on."""

    name: str
    build: Callable[[], keras.layers.Layer]
    args: tuple
    kwargs: dict[str, Any] = {}  # noqa: RUF012, never changed
    fast: bool = False
    heavy: bool = False  # seconds to compile
    refused: str = ""  # how the error begins that says why it can't run on JAX


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


V, S, IMAGES, W = normal(4, 6), normal(4, 5, 6), normal(2, 8, 8, 3), normal(8, 32, 32, 3)
TOKENS = RNG.integers(1, 10, (4, 5)).astype("int32") * (np.arange(5) < [[5], [3], [4], [1]])
TOKENS = TOKENS.astype("int32")
MASK = TOKENS > 0


# --- layers that need a line more


class SelfAttention(L.Layer):
    """Attention of a sequence to itself, as a sublayer."""

    def __init__(self, grouped: bool = False, dropout: float = 0.0, **options: Any):
        super().__init__(**options)
        self.attention = (
            L.GroupQueryAttention(4, 4, 2, dropout=dropout)
            if grouped
            else L.MultiHeadAttention(2, 4, dropout=dropout)
        )

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.attention(x, x, training=training)


class Held(L.Layer):
    """Layers in a list and in a dict; nothing is built before the first call."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.blocks = [L.Dense(5), L.BatchNormalization(), L.Dropout(0.4)]
        self.heads = {"a": L.Dense(2), "b": L.Dense(3, "tanh")}

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return {name: head(x) for name, head in self.heads.items()}


class HeldModel(keras.Model):
    """The same as a subclassed model."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.blocks = [L.Dense(5), L.BatchNormalization()]
        self.heads = {"a": L.Dense(2), "b": L.Dense(3, "tanh")}

    def call(self, x: Any, training: bool | None = None) -> Any:
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, L.BatchNormalization) else block(x)
        return self.heads["a"](x), self.heads["b"](x)


class Kinds(L.Layer):
    """Every kind of state: weights, a counter, a frozen layer, a value, a raised loss."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], 3), name="w", regularizer="l2")
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.scale = keras.Variable(np.float32(0.5), trainable=False, name="scale")
        self.frozen = L.Dense(3)
        self.frozen.build(shape)
        self.frozen.trainable = False

    def call(self, x: Any) -> Any:
        self.count.assign_add(1.0)
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return self.scale * keras.ops.matmul(x, self.w) + self.frozen(x)


class Remembers(L.Layer):
    """Sets an attribute in `call`."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, x: Any) -> Any:
        self.seen = keras.ops.matmul(x, self.w)
        return self.seen + 1


def adapted() -> keras.layers.Layer:
    layer = L.Normalization()
    layer.adapt(V + 3)
    return layer


def sequential(*parts: Any, shape: tuple = (6,)) -> Callable[[], keras.Model]:
    """A builder of a Sequential of what these build."""
    return lambda: keras.Sequential([keras.Input(shape), *(part() for part in parts)])


def shared() -> keras.Model:
    x = keras.Input((6,))
    dense = L.Dense(6, "tanh")
    return keras.Model(x, L.Dense(2)(dense(dense(x)) + x))


def nested() -> keras.Model:
    x, y = keras.Input((6,)), keras.Input((5,))
    inner = keras.Sequential([keras.Input((6,)), L.Dense(5), L.BatchNormalization()])
    return keras.Model(x, keras.Model(y, L.Dense(2)(y))(inner(x)))


def two_inputs() -> keras.Model:
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = L.Concatenate()([L.Dense(3)(a), L.Dense(3)(b)])
    return keras.Model({"a": a, "b": b}, [L.Dense(2)(x), L.Dense(1)(x)])


def masked() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), L.Embedding(10, 4, mask_zero=True), L.LSTM(3)])


def mixed() -> keras.Model:
    policy = "mixed_bfloat16"
    return keras.Sequential([keras.Input((6,)), L.Dense(4, dtype=policy), L.BatchNormalization(dtype=policy)])


def lora() -> keras.layers.Layer:
    layer = L.Dense(4)
    layer.build((None, 6))
    layer.enable_lora(2)
    return layer


def frozen() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), L.BatchNormalization(), L.Dense(2)])
    model.layers[0].trainable = model.layers[1].trainable = False
    return model


def application(name: str) -> Callable[[], keras.Model]:
    return lambda: applications.body(name)


TEXT = np.array([["a b"], ["b"]])

ROWS = [
    Row("Dense", lambda: L.Dense(4, kernel_regularizer="l2"), (V,)),
    Row("EinsumDense", lambda: L.EinsumDense("abc,cd->abd", output_shape=(None, 7), bias_axes="d"), (S,)),
    Row("Conv1D", lambda: L.Conv1D(4, 3, padding="causal"), (S,)),
    Row("Conv2D", lambda: L.Conv2D(4, 3, groups=1), (IMAGES,)),
    Row("Conv3D", lambda: L.Conv3D(2, 2), (normal(2, 4, 4, 4, 2),)),
    Row("DepthwiseConv1D", lambda: L.DepthwiseConv1D(3), (S,)),
    Row("DepthwiseConv2D", lambda: L.DepthwiseConv2D(3), (IMAGES,)),
    Row("SeparableConv1D", lambda: L.SeparableConv1D(4, 3), (S,)),
    Row("SeparableConv2D", lambda: L.SeparableConv2D(4, 3), (IMAGES,)),
    Row("Conv1DTranspose", lambda: L.Conv1DTranspose(4, 3), (S,)),
    Row("Conv2DTranspose", lambda: L.Conv2DTranspose(4, 3, strides=2), (IMAGES,)),
    Row("MaxPooling2D", lambda: L.MaxPooling2D(), (IMAGES,)),
    Row("BatchNormalization", L.BatchNormalization, (V,)),
    Row("LayerNormalization", L.LayerNormalization, (V,)),
    Row("GroupNormalization", lambda: L.GroupNormalization(groups=3), (V,)),
    Row("RMSNormalization", L.RMSNormalization, (V,)),
    Row("UnitNormalization", L.UnitNormalization, (V,)),
    Row("SpectralNormalization", lambda: L.SpectralNormalization(L.Dense(4)), (V,)),
    Row("Normalization", adapted, (V,)),
    Row("Embedding", lambda: L.Embedding(10, 4), (TOKENS,)),
    Row("MultiHeadAttention", lambda: L.MultiHeadAttention(2, 4), (S, S), {"query_mask": MASK}),
    Row("self-attention", SelfAttention, (S,)),
    Row("self-attention, dropout", lambda: SelfAttention(dropout=0.3), (S,)),
    Row("GroupQueryAttention", lambda: SelfAttention(grouped=True), (S,)),
    Row("LSTM", lambda: L.LSTM(4), (S,), {"mask": MASK}),
    Row("LSTM, initial state", lambda: L.LSTM(4), (S,), {"initial_state": [normal(4, 4), normal(4, 4)]}),
    Row("LSTM, dropout", lambda: L.LSTM(4, dropout=0.3, recurrent_dropout=0.2), (S,)),
    Row("LSTM, stateful", lambda: L.LSTM(4, stateful=True), (S,)),
    Row("GRU", lambda: L.GRU(4, return_sequences=True, return_state=True), (S,)),
    Row("SimpleRNN", lambda: L.SimpleRNN(4), (S,)),
    Row("StackedRNNCells", lambda: L.RNN([L.GRUCell(3), L.LSTMCell(4)]), (S,)),
    Row("Bidirectional", lambda: L.Bidirectional(L.LSTM(3)), (S,)),
    Row("TimeDistributed", lambda: L.TimeDistributed(L.Dense(3)), (S,)),
    Row("ConvLSTM2D", lambda: L.ConvLSTM2D(2, 3), (normal(2, 3, 6, 6, 2),)),
    Row("Dropout", lambda: L.Dropout(0.5), (V,)),
    Row("SpatialDropout1D", lambda: L.SpatialDropout1D(0.5), (S,)),
    Row("GaussianNoise", lambda: L.GaussianNoise(0.5), (V,)),
    Row("GaussianDropout", lambda: L.GaussianDropout(0.5), (V,)),
    Row("AlphaDropout", lambda: L.AlphaDropout(0.5), (V,)),
    Row("ActivityRegularization", lambda: L.ActivityRegularization(l2=0.1), (V,)),
    Row("PReLU", lambda: L.PReLU(keras.initializers.Constant(0.25)), (V,)),
    Row("Masking", L.Masking, (S,)),
    Row("Resizing", lambda: L.Resizing(4, 4), (IMAGES,)),
    Row("Rescaling", lambda: L.Rescaling(0.5), (IMAGES,)),
    Row("RandomFlip", L.RandomFlip, (IMAGES,)),
    Row("RandomRotation", lambda: L.RandomRotation(0.2), (IMAGES,)),
    Row("RandomZoom", lambda: L.RandomZoom(0.2), (IMAGES,)),
    Row("RandomTranslation", lambda: L.RandomTranslation(0.2, 0.2), (IMAGES,)),
    Row("RandomContrast", lambda: L.RandomContrast(0.2, value_range=(0, 1)), (IMAGES,)),
    Row("RandomBrightness", lambda: L.RandomBrightness(0.2, value_range=(0, 1)), (IMAGES,)),
    Row("Dense, LoRA", lora, (V,)),
    Row("every kind of state", Kinds, (V,)),
    Row("attribute set in call", Remembers, (V,)),
    Row("Sequential", sequential(lambda: L.Dense(4, "relu"), lambda: L.Dense(3)), (V,)),
    Row(
        "Sequential, BatchNormalization, Dropout",
        sequential(lambda: L.Dense(4), L.BatchNormalization, lambda: L.Dropout(0.5), lambda: L.Dense(3)),
        (V,),
        fast=True,
    ),
    Row("Sequential, not built", lambda: keras.Sequential([L.Dense(4), L.Dense(3)]), (V,)),
    Row("Sequential, LSTM", sequential(lambda: L.LSTM(4), lambda: L.Dense(2), shape=(5, 6)), (S,)),
    Row("Sequential, mask", masked, (TOKENS,)),
    Row("Functional, shared layer", shared, (V,)),
    Row("Functional, two inputs", two_inputs, ({"a": V, "b": V[::-1].copy()},)),
    Row("models in models", nested, (V,)),
    Row("frozen layers", frozen, (V,)),
    Row("mixed_bfloat16", mixed, (V,)),
    Row("layers in a list and a dict", Held, (V,), fast=True),
    Row("model with a list and a dict", HeldModel, (V,)),
    Row("ResNet50", application("ResNet50"), (W,), heavy=True),
    Row("EfficientNetB0", application("EfficientNetB0"), (W,), heavy=True),
    Row("MobileNetV3Small", application("MobileNetV3Small"), (W,), heavy=True),
    Row("RandomCrop", lambda: L.RandomCrop(4, 4), (IMAGES,), refused="RandomCrop under a trace"),
    Row("Hashing", lambda: L.Hashing(8), (TOKENS,), refused="requires TensorFlow"),
    Row("Discretization", lambda: L.Discretization(bin_boundaries=[0.0, 1.0]), (V,)),
    Row(
        "StringLookup", lambda: L.StringLookup(vocabulary=["a", "b"]), (TEXT,), refused="requires TensorFlow"
    ),
    Row("TextVectorization", L.TextVectorization, (TEXT,), refused="requires TensorFlow"),
]
