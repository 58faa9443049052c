"""The contract table of the migration: every layer in every setting that changes what it computes.

One row adds a setting and all of its checks: inference, training, statistics, gradients, weights
both ways, in float32 and in float64, and the source.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers as L
from keras import ops


class Row(NamedTuple):
    """A layer, or a function of tensors, and the shapes that it is called on."""

    name: str
    make: Callable[[], Callable]
    shapes: tuple[tuple[int, ...], ...]
    ids: int = 0  # inputs are whole numbers below this one
    masked: bool = False  # the inputs come through a Masking layer
    random: bool = False  # what training computes is drawn
    tolerance: float = 1e-5
    fast: bool = False
    double: float = 1e-10  # the tolerance in float64

    def model(self) -> keras.Model:
        """A model of this layer alone, with weights and statistics that are not at their start."""
        keras.utils.set_random_seed(3)
        inputs = [keras.Input(shape, dtype="int32" if self.ids else None) for shape in self.shapes]
        tensors = [L.Masking()(x) for x in inputs] if self.masked else inputs
        called = self.make()
        outputs = (
            called(*tensors)
            if isinstance(called, Function)
            else called(tensors[0] if len(tensors) == 1 else tensors)
        )
        model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs)
        rng = np.random.default_rng(4)
        for variable in model.weights:
            if "float" in str(variable.dtype):
                noise = rng.uniform(0.1, 0.5, variable.shape)
                variable.assign(variable.value + noise if variable.ndim else variable.value)
        for layer in model.layers:
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()
        return model

    def batch(self, size: int = 3, dtype: str = "float32") -> list[np.ndarray]:
        """One array for each input; the last times are masked."""
        rng = np.random.default_rng(5)
        if self.ids:
            return [rng.integers(0, self.ids, (size, *shape)).astype("int32") for shape in self.shapes]
        arrays = [rng.standard_normal((size, *shape)).astype(dtype) for shape in self.shapes]
        if self.masked:
            for array in arrays:
                array[1:, -1:] = 0
                array[2, 0] = 0
        return arrays


class Function:
    """A function of as many tensors as there are inputs."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *tensors: Any) -> Any:
        return self.function(*tensors)


def of(function: Callable) -> Callable[[], Function]:
    return lambda: Function(function)


SOFTMAX = 1e-5  # as in float32, in which attention in Keras takes the softmax whatever it is given
COUNTED = 1e-6  # Keras adds 1e-7 to the number of masked entries, which float32 rounds away
VECTOR, TIMES, IMAGE, VOLUME = (6,), (5, 4), (7, 8, 4), (4, 5, 6, 2)
FIRST = {"data_format": "channels_first"}
ACTIVATIONS = [
    name
    for name in dir(keras.activations)
    if not name.startswith("_") and name not in ("get", "serialize", "deserialize", "threshold")
]


def rows(name: str, shape: Any, makers: dict[str, Callable], **options: Any) -> list[Row]:
    shapes = shape if isinstance(shape[0], tuple) else (shape,)
    fast = options.pop("fast", ())
    return [
        Row(f"{name}_{key}" if key else name, make, shapes, fast=key in fast, **options)
        for key, make in makers.items()
    ]


def _glu(name: str) -> Callable[[], Any]:
    return lambda: L.Activation(name)


DENSE = [
    *rows("dense", VECTOR, {
        "": lambda: L.Dense(3, "relu"),
        "no_bias": lambda: L.Dense(3, use_bias=False),
        "softmax": lambda: L.Dense(3, "softmax"),
        "hard_shrink": lambda: L.Dense(3, "hard_shrink"),
    }, fast=("",)),
    *rows("dense_times", TIMES, {"": lambda: L.Dense(3, "gelu")}),
    *rows("einsum", TIMES, {
        "plain": lambda: L.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d", activation="tanh"),
        "no_bias": lambda: L.EinsumDense("abc,cd->abd", (None, 3)),
        "two_axes": lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        "one_of_two": lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e"),
        "data_axis": lambda: L.EinsumDense("abc,cd->abd", (5, 3), bias_axes="bd"),
    }),
    *rows("embedding", (5,), {
        "": lambda: L.Embedding(7, 3),
        "mask_zero": lambda: keras.Sequential([L.Embedding(7, 3, mask_zero=True), L.LSTM(2)]),
    }, ids=7, fast=("",)),
    *rows("reversible", (5,), {
        "": lambda: _tied(None),
        "capped": lambda: _tied(2.0),
    }, ids=7),
]  # fmt: skip


def _tied(cap: float | None) -> Function:
    embedding = L.ReversibleEmbedding(7, 3, logit_soft_cap=cap)
    return Function(lambda x: embedding(embedding(x), reverse=True))


CONV = [
    *rows("conv1d", (9, 4), {
        "valid": lambda: L.Conv1D(3, 3, activation="relu"),
        "same": lambda: L.Conv1D(3, 3, padding="same", strides=2),
        "causal": lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2),
        "groups": lambda: L.Conv1D(4, 3, groups=2, use_bias=False),
        "first": lambda: L.Conv1D(3, 3, **FIRST),
    }, fast=("causal",)),
    *rows("conv2d", IMAGE, {
        "valid": lambda: L.Conv2D(3, 3, activation="relu"),
        "same": lambda: L.Conv2D(3, (3, 2), padding="same", strides=(2, 1)),
        "dilated": lambda: L.Conv2D(3, 2, dilation_rate=(1, 2)),
        "groups": lambda: L.Conv2D(4, 3, groups=4, use_bias=False),
        "first": lambda: L.Conv2D(3, 3, padding="same", **FIRST),
    }, fast=("same",)),
    *rows("conv3d", VOLUME, {
        "valid": lambda: L.Conv3D(3, 2, activation="relu"),
        "same": lambda: L.Conv3D(3, 3, padding="same", strides=2),
    }),
    *rows("depthwise1d", (9, 4), {
        "valid": lambda: L.DepthwiseConv1D(3, depth_multiplier=2, activation="relu"),
        "same": lambda: L.DepthwiseConv1D(3, padding="same", strides=2),
    }),
    *rows("depthwise2d", IMAGE, {
        "valid": lambda: L.DepthwiseConv2D(3, depth_multiplier=2),
        "same": lambda: L.DepthwiseConv2D(3, padding="same", strides=2, use_bias=False),
        "dilated": lambda: L.DepthwiseConv2D(2, dilation_rate=2),
        "first": lambda: L.DepthwiseConv2D(3, **FIRST),
    }, fast=("valid",)),
    *rows("separable1d", (9, 4), {
        "valid": lambda: L.SeparableConv1D(3, 3, depth_multiplier=2, activation="relu"),
    }),
    *rows("separable2d", IMAGE, {
        "valid": lambda: L.SeparableConv2D(3, 3, depth_multiplier=2),
        "same": lambda: L.SeparableConv2D(3, 3, padding="same", strides=2, use_bias=False),
    }, fast=("valid",)),
    *rows("transpose1d", (5, 4), {
        "valid": lambda: L.Conv1DTranspose(3, 3, strides=2),
        "same": lambda: L.Conv1DTranspose(3, 3, strides=2, padding="same", activation="relu"),
        "wide_stride": lambda: L.Conv1DTranspose(3, 2, strides=3),
    }),
    *rows("transpose2d", IMAGE, {
        "valid": lambda: L.Conv2DTranspose(3, 3, strides=2),
        "same": lambda: L.Conv2DTranspose(3, 4, strides=2, padding="same"),
        "output_padding": lambda: L.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1),
        "dilated": lambda: L.Conv2DTranspose(3, 3, dilation_rate=2),
        "first": lambda: L.Conv2DTranspose(3, 3, use_bias=False, **FIRST),
    }, fast=("same",)),
    *rows("transpose3d", VOLUME, {"same": lambda: L.Conv3DTranspose(3, 3, strides=2, padding="same")}),
]  # fmt: skip

NORMS = [
    *rows("batch_norm", VECTOR, {
        "": lambda: L.BatchNormalization(),
        "settings": lambda: L.BatchNormalization(momentum=0.7, epsilon=0.1, scale=False),
        "uncentered": lambda: L.BatchNormalization(center=False),
        "frozen": lambda: L.BatchNormalization(trainable=False),
    }, fast=("settings",)),
    *rows("batch_norm_image", IMAGE, {
        "": lambda: L.BatchNormalization(),
        "axis_1": lambda: L.BatchNormalization(axis=1),
    }),
    *rows("batch_norm_masked", TIMES, {"": lambda: L.BatchNormalization()}, masked=True, double=COUNTED),
    *rows("layer_norm", TIMES, {
        "": lambda: L.LayerNormalization(),
        "axes": lambda: L.LayerNormalization(axis=(1, 2), epsilon=0.1),
        "axis_1": lambda: L.LayerNormalization(axis=1),
        "plain": lambda: L.LayerNormalization(scale=False, center=False),
    }, fast=("axes",)),
    *rows("group_norm", IMAGE, {
        "": lambda: L.GroupNormalization(2),
        "axis_1": lambda: L.GroupNormalization(7, axis=1),
        "instance": lambda: L.GroupNormalization(-1),
    }, fast=("",)),
    *rows("rms_norm", TIMES, {
        "": lambda: L.RMSNormalization(),
        "axes": lambda: L.RMSNormalization(axis=(1, 2)),
    }),
    *rows("unit_norm", TIMES, {
        "": lambda: L.UnitNormalization(),
        "axis_1": lambda: L.UnitNormalization(axis=1),
    }),
    *rows("normalization", VECTOR, {
        "": lambda: _adapted(L.Normalization()),
        "invert": lambda: _adapted(L.Normalization(invert=True)),
        "one_number": lambda: _adapted(L.Normalization(axis=None)),
        "given": lambda: L.Normalization(mean=2.0, variance=3.0),
    }),
    *rows("rescaling", IMAGE, {
        "": lambda: L.Rescaling(1 / 127.5, -1.0),
        "channels": lambda: L.Rescaling([1.0, 2.0, 3.0, 4.0]),
    }),
]  # fmt: skip


def _adapted(layer: Any) -> Any:
    layer.adapt(np.random.default_rng(1).normal(3, 2, (20, *VECTOR)).astype("float32"))
    return layer


ACTIVE = [
    *rows("activation", TIMES, {name: _glu(name) for name in ACTIVATIONS}),
    *rows("relu", VECTOR, {
        "": lambda: L.ReLU(),
        "slope": lambda: L.ReLU(negative_slope=0.1),
        "max": lambda: L.ReLU(max_value=1.0),
        "max_6": lambda: L.ReLU(max_value=6.0),
        "threshold": lambda: L.ReLU(threshold=0.5),
        "all": lambda: L.ReLU(max_value=1.0, negative_slope=0.1, threshold=0.2),
    }),
    *rows("leaky_relu", VECTOR, {"": lambda: L.LeakyReLU(negative_slope=0.3)}),
    *rows("elu", VECTOR, {"": lambda: L.ELU(alpha=0.5)}),
    *rows("prelu", IMAGE, {
        "": lambda: L.PReLU(),
        "shared": lambda: L.PReLU(shared_axes=[1, 2]),
    }),
    *rows("softmax", TIMES, {
        "": lambda: L.Softmax(),
        "axis_1": lambda: L.Softmax(axis=1),
        "axes": lambda: Function(lambda x: L.Softmax(axis=(1, 2))(x)),
        "mask": lambda: Function(lambda x: L.Softmax()(x, mask=x > 0)),
    }),
    *rows("identity", VECTOR, {"": lambda: L.Identity()}),
    *rows("activity", VECTOR, {"": lambda: L.ActivityRegularization(l2=0.1)}),
]  # fmt: skip

POOLS = [
    row
    for size, shape in (("1d", TIMES), ("2d", IMAGE), ("3d", VOLUME))
    for row in [
        *rows(f"max_pool{size}", shape, {
            "": lambda size=size: getattr(L, f"MaxPooling{size.upper()}")(2),
            "same": lambda size=size: getattr(L, f"MaxPooling{size.upper()}")(3, strides=2, padding="same"),
        }),
        *rows(f"average_pool{size}", shape, {
            "": lambda size=size: getattr(L, f"AveragePooling{size.upper()}")(2),
            "same": lambda size=size: getattr(L, f"AveragePooling{size.upper()}")(3, 2, padding="same"),
            "first": lambda size=size: getattr(L, f"AveragePooling{size.upper()}")(2, **FIRST),
        }, fast=("same",) if size == "2d" else ()),
        *rows(f"global_max{size}", shape, {
            "": lambda size=size: getattr(L, f"GlobalMaxPooling{size.upper()}")(),
            "kept": lambda size=size: getattr(L, f"GlobalMaxPooling{size.upper()}")(keepdims=True),
        }),
        *rows(f"global_average{size}", shape, {
            "": lambda size=size: getattr(L, f"GlobalAveragePooling{size.upper()}")(),
            "first": lambda size=size: getattr(L, f"GlobalAveragePooling{size.upper()}")(**FIRST),
        }),
    ]
] + rows("global_average_masked", TIMES, {
    "": lambda: L.GlobalAveragePooling1D(),
    "kept": lambda: L.GlobalAveragePooling1D(keepdims=True),
}, masked=True)  # fmt: skip

SHAPES = [
    *rows("flatten", IMAGE, {"": lambda: L.Flatten(), "first": lambda: L.Flatten(**FIRST)}),
    *rows("reshape", VECTOR, {
        "": lambda: L.Reshape((2, 3)),
        "open": lambda: L.Reshape((-1, 2)),
        "new_axes": lambda: L.Reshape((1, 1, 6)),
    }),
    *rows("permute", TIMES, {"": lambda: L.Permute((2, 1))}),
    *rows("repeat", VECTOR, {"": lambda: L.RepeatVector(3)}),
    *rows("pad1d", TIMES, {"": lambda: L.ZeroPadding1D((1, 2))}),
    *rows("pad2d", IMAGE, {
        "": lambda: L.ZeroPadding2D(((1, 0), (2, 1))),
        "first": lambda: L.ZeroPadding2D(1, **FIRST),
    }),
    *rows("pad3d", VOLUME, {"": lambda: L.ZeroPadding3D(1)}),
    *rows("crop1d", TIMES, {"": lambda: L.Cropping1D((1, 0))}),
    *rows("crop2d", IMAGE, {
        "": lambda: L.Cropping2D(((1, 0), (2, 1))),
        "first": lambda: L.Cropping2D(1, **FIRST),
    }),
    *rows("crop3d", VOLUME, {"": lambda: L.Cropping3D(1)}),
    *rows("up1d", TIMES, {"": lambda: L.UpSampling1D(2)}),
    *rows("up2d", IMAGE, {
        "": lambda: L.UpSampling2D((2, 3)),
        "bilinear": lambda: L.UpSampling2D(2, interpolation="bilinear"),
        "first": lambda: L.UpSampling2D(2, interpolation="bilinear", **FIRST),
    }),
    *rows("up3d", VOLUME, {"": lambda: L.UpSampling3D(2)}),
    *rows("resizing", IMAGE, {
        "": lambda: L.Resizing(5, 6),
        "nearest": lambda: L.Resizing(14, 16, interpolation="nearest"),
        "bicubic": lambda: L.Resizing(10, 9, interpolation="bicubic", antialias=True),
    }, tolerance=1e-4),
    *rows("masking", TIMES, {"": lambda: L.Masking()}),
]  # fmt: skip

TWO = (TIMES, TIMES)
MERGES = [
    *rows("merge", TWO, {
        name: lambda name=name: getattr(L, name)()
        for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
    }),
    *rows("merge_ranks", (TIMES, (4,)), {"": lambda: L.Add()}),
    *rows("concatenate", TWO, {"axis_1": lambda: L.Concatenate(axis=1)}),
    *rows("dot", TWO, {
        "": lambda: L.Dot(axes=2),
        "normalized": lambda: L.Dot(axes=(1, 1), normalize=True),
    }),
    *rows("dot_vectors", (VECTOR, VECTOR), {"": lambda: L.Dot(axes=1)}),
]  # fmt: skip

DROPS = [
    *rows("dropout", TIMES, {
        "": lambda: L.Dropout(0.5),
        "zero": lambda: L.Dropout(0.0),
        "shared": lambda: L.Dropout(0.5, noise_shape=(None, 1, None)),
        "sized": lambda: L.Dropout(0.5, noise_shape=(None, 5, 1)),
        "spatial": lambda: L.SpatialDropout1D(0.5),
        "gaussian": lambda: L.GaussianDropout(0.3),
        "alpha": lambda: L.AlphaDropout(0.3),
        "noise": lambda: L.GaussianNoise(0.3),
    }, random=True, fast=("",)),
    *rows("dropout_image", IMAGE, {
        "spatial": lambda: L.SpatialDropout2D(0.5),
        "first": lambda: L.SpatialDropout2D(0.5, **FIRST),
    }, random=True),
]  # fmt: skip


def _attend(layer: Callable, **options: Any) -> Callable[[], Function]:
    def call(query: Any, value: Any = None) -> Any:
        return layer()(query, query if value is None else value, **options)

    return of(call)


def _mha(**options: Any) -> Callable:
    return lambda: L.MultiHeadAttention(2, 3, **options)


def _gqa(**options: Any) -> Callable:
    return lambda: L.GroupQueryAttention(3, 4, 2, **options)


def _explicit_mask(query: Any, value: Any) -> Any:
    mask = ops.matmul(query, ops.transpose(value, (0, 2, 1))) > 0
    return L.MultiHeadAttention(2, 3)(query, value, attention_mask=mask)


OTHER = (TIMES, (6, 3))
ATTENTION = [
    *rows("mha", TIMES, {
        "self": _attend(_mha()),
        "causal": _attend(_mha(), use_causal_mask=True),
        "no_bias": _attend(_mha(use_bias=False, output_shape=7)),
        "value_dim": _attend(_mha(value_dim=5), return_attention_scores=True),
        "scores": _attend(_mha(), return_attention_scores=True),
        "whole": _attend(lambda: L.MultiHeadAttention(2, 2)),
    }, fast=("causal",)),
    *rows("mha", TIMES, {"gate": _attend(_mha(use_gate=True))}, double=SOFTMAX),
    *rows("mha_cross", OTHER, {
        "": _attend(_mha()),
    }),
    *rows("mha_mask", TWO, {"": of(_explicit_mask)}),
    *rows("mha_masked", TIMES, {
        "self": _attend(_mha()),
        "causal": _attend(_mha(), use_causal_mask=True),
        "scores": _attend(_mha(), return_attention_scores=True),
    }, masked=True),
    *rows("mha_masked", TWO, {
        "cross": _attend(_mha()),
        "key": of(lambda q, v: L.MultiHeadAttention(2, 3)(q, v, q)),
    }, masked=True),
    *rows("mha_dropout", TIMES, {"": _attend(_mha(dropout=0.5))}, random=True, masked=True),
    *rows("mha_dropout", TIMES, {"plain": _attend(_mha(dropout=0.5))}, random=True),
    *rows("gqa", TIMES, {
        "self": _attend(_gqa()),
        "causal": _attend(_gqa(), use_causal_mask=True),
        "no_bias": _attend(_gqa(use_bias=False)),
    }),
    *rows("gqa", TIMES, {"gate": _attend(_gqa(use_gate=True))}, double=SOFTMAX),
    *rows("attention", OTHER[:1] * 2, {
        "": lambda: L.Attention(),
        "scaled": lambda: L.Attention(use_scale=True),
        "concat": lambda: L.Attention(use_scale=True, score_mode="concat"),
        "scores": lambda: Function(lambda q, v: L.Attention()([q, v], return_attention_scores=True)),
        "causal": lambda: Function(lambda q, v: L.Attention()([q, v], use_causal_mask=True)),
        "additive": lambda: L.AdditiveAttention(),
    }),
    *rows("attention_masked", TWO, {
        "": lambda: L.Attention(),
        "causal": lambda: Function(lambda q, v: L.Attention()([q, v], use_causal_mask=True)),
    }, masked=True),
]  # fmt: skip

RNN_SETTINGS: dict[str, dict] = {
    "": {},
    "sequences": {"return_sequences": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "no_bias": {"use_bias": False},
    "activations": {"activation": "relu"},
    "states": {"return_state": True, "return_sequences": True},
    "unrolled": {"unroll": True},
}


def _masked(settings: dict) -> dict:
    return {"zero_output_for_mask": True, **settings}


RECURRENT = [
    *(
        row
        for name, layer in (("lstm", L.LSTM), ("gru", L.GRU), ("simple_rnn", L.SimpleRNN))
        for row in [
            *rows(name, TIMES, {
                key: lambda layer=layer, s=s: layer(3, **s) for key, s in RNN_SETTINGS.items()
            }, fast=("sequences",) if name == "lstm" else ()),
            *rows(f"{name}_masked", TIMES, {
                "": lambda layer=layer: layer(3),
                "backwards": lambda layer=layer: layer(3, go_backwards=True, return_sequences=True),
                "zero": lambda layer=layer: layer(3, return_sequences=True, zero_output_for_mask=True),
                "states": lambda layer=layer: layer(3, return_state=True),
                "unrolled": lambda layer=layer: layer(3, unroll=True, return_sequences=True),
            }, masked=True, fast=("zero",) if name == "gru" else ()),
        ]
    ),
    *rows("gru_before", TIMES, {
        "": lambda: L.GRU(3, reset_after=False),
        "no_bias": lambda: L.GRU(3, reset_after=False, use_bias=False),
    }, fast=("",)),
    *rows("lstm_start", (TIMES, (3,), (3,)), {
        "": of(lambda x, h, c: L.LSTM(3)(x, initial_state=[h, c])),
    }),
    *rows("gru_start", (TIMES, (3,)), {"": of(lambda x, h: L.GRU(3)(x, initial_state=h))}),
    *rows("rnn_of_cell", TIMES, {"": lambda: L.RNN(L.LSTMCell(3), return_sequences=True)}),
    *rows("bidirectional", TIMES, {
        **{
            str(mode): lambda mode=mode: L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode=mode)
            for mode in ("concat", "sum", "mul", "ave", None)
        },
        "last": lambda: L.Bidirectional(L.GRU(3)),
        "simple": lambda: L.Bidirectional(L.SimpleRNN(3)),
        "other": lambda: L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True)),
    }, fast=("last",)),
    *rows("bidirectional_masked", TIMES, {
        "": lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)),
        "last": lambda: L.Bidirectional(L.LSTM(3)),
    }, masked=True, fast=("",)),
    *rows("time_distributed", TIMES, {
        "dense": lambda: L.TimeDistributed(L.Dense(3, "relu")),
        "frozen": lambda: L.TimeDistributed(L.BatchNormalization(trainable=False)),
    }, fast=("dense",)),
    *rows("time_distributed_model", IMAGE, {
        "": lambda: L.TimeDistributed(keras.Sequential([keras.Input((8, 4)), L.Conv1D(2, 3), L.Flatten()])),
    }),
    *rows("conv_lstm1d", (4, 6, 2), {"": lambda: L.ConvLSTM1D(3, 3, padding="same")}),
    *rows("conv_lstm2d", (3, 6, 5, 2), {
        "": lambda: L.ConvLSTM2D(3, 3, padding="same", return_sequences=True),
        "valid": lambda: L.ConvLSTM2D(3, 2, strides=2, use_bias=False, activation="relu"),
    }),
]  # fmt: skip

EVERY = [
    *DENSE, *CONV, *NORMS, *ACTIVE, *POOLS, *SHAPES, *MERGES, *DROPS, *ATTENTION, *RECURRENT,
]  # fmt: skip
