"""Rules for dense, embedding, activation and normalization layers."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers as L

from keras_flax_bridge.migrate.python_text import literal, number
from keras_flax_bridge.migrate.rules.rule import ABSENT, Rule, To, add
from keras_flax_bridge.migrate.rules.site import HALF, Refusal, Site, dtype, dtypes
from keras_flax_bridge.migrate.transforms import Reshape, Transform
from keras_flax_bridge.startup import compat

WEIGHT_AND_BIAS = {"kernel": "kernel", "bias": "bias"}


def features(site: Site) -> int:
    """The size of the last axis of the input."""
    size = site.shape()[-1]
    if size is None:
        raise Refusal("the size of the last axis of its input is unknown")
    return size


def plain(site: Site) -> str | None:
    """The reason why a layer with LoRA or quantized weights can't be converted, or None."""
    layer = site.layer
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights: merge them first"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized to {layer.quantization_mode}"
    return None


def _einsum_is_plain(site: Site) -> bool:
    """Whether the bias has all kernel axes of the output, as the bias of nnx.Einsum."""
    equation = site.layer.equation.replace(" ", "")
    inputs, output = equation.split("->")
    kept = [axis for axis in output if axis in inputs.split(",")[1]]
    return site.layer.bias_axes is None or sorted(site.layer.bias_axes) == sorted(kept)


def _bias_shape(site: Site) -> Any:
    return None if site.layer.bias is None else tuple(site.layer.bias.shape)


def _embedding_ids(site: Site) -> str:
    integer = str(site.node.inputs[0].dtype).startswith(("int", "uint"))
    return site.x if integer else f"{site.x}.astype(jnp.int32)"


def _reversible(site: Site) -> str:
    if not site.argument("reverse"):
        return f"«m»({_embedding_ids(site)})"
    code = f"«m».attend({site.cast()})"
    cap = site.layer.logit_soft_cap
    return code if cap is None else f"jnp.tanh({code} / {number(cap)}) * {number(cap)}"


def _reversible_refused(site: Site) -> str | None:
    untied = None if site.layer.tie_weights else "its weights are not tied"
    return plain(site) or untied


EMBED = {
    "num_embeddings": "input_dim",
    "features": "output_dim",
    **dtypes(),
    "dtype": lambda site: dtype(site.compute_dtype) if site.compute_dtype in HALF else None,
}
EQUATION: dict[str, Any] = {
    "kernel_shape": lambda site: tuple(site.layer.kernel.shape),
    "bias_shape": _bias_shape,
    **dtypes(),
}

add(
    Rule(
        L.Dense,
        "nnx.Linear",
        {"in_features": features, "out_features": "units", "use_bias": "use_bias", **dtypes()},
        WEIGHT_AND_BIAS,
        activation="activation",
        refuse=plain,
    ),
    Rule(
        L.EinsumDense,
        lambda site: "nnx.Einsum" if _einsum_is_plain(site) else "EinsumBias",
        {
            "einsum_str": lambda s: s.layer.equation.replace(" ", "") if _einsum_is_plain(s) else ABSENT,
            "equation": lambda s: ABSENT if _einsum_is_plain(s) else s.layer.equation.replace(" ", ""),
            **EQUATION,
        },
        WEIGHT_AND_BIAS,
        activation="activation",
        refuse=plain,
        note="`nnx.Einsum`; a generated module if the bias has fewer axes",
    ),
    Rule(
        L.Embedding,
        "nnx.Embed",
        EMBED,
        {"embeddings": "embedding"},
        lambda site: f"«m»({_embedding_ids(site)})",
        refuse=plain,
        note="its mask reaches the same layers as in Keras",
    ),
    Rule(
        L.ReversibleEmbedding,
        "nnx.Embed",
        EMBED,
        {"embeddings": "embedding"},
        _reversible,
        refuse=_reversible_refused,
        note="`attend` for the reverse",
    ),
)


# activations
def _relu(site: Site) -> str:
    layer, x = site.layer, site.cast()
    slope, most, threshold = float(layer.negative_slope), layer.max_value, float(layer.threshold)
    if slope and most is None and not threshold:
        return f"nnx.leaky_relu({x}, {number(slope)})"
    if not threshold:
        positive = "jax.nn.relu6({x})" if most == 6 else "nnx.relu({x})"
    else:
        positive = f"jnp.where({{x}} > {number(threshold)}, {{x}}, 0)"
    if most is not None and (most != 6 or threshold):
        positive = f"jnp.clip({positive}, 0, {number(float(most))})"
    negative = f"-{{x}} + {number(threshold)}" if threshold else "-{x}"
    template = f"{positive} - {number(slope)} * nnx.relu({negative})" if slope else positive
    return template.format(x=site.let(x) if template.count("{x}") > 1 else x)


def _softmax(site: Site) -> str:
    axis: Any = site.layer.axis
    axis = axis if isinstance(axis, int) else tuple(axis)
    mask = site.argument("mask")
    masked = site.mask() if mask is None else site.text(mask)
    if masked is None:
        return f"nnx.softmax({site.cast()}, axis={literal(axis)})"
    if mask is not None and str(mask.dtype) != "bool":
        masked = f"({masked} > 0.5)"
    low = "-3e4" if site.compute_dtype == "float16" else "-1e9"
    kept = f"jnp.where({masked}, {site.cast()}, {low})"
    return f"jnp.where({masked}, nnx.softmax({kept}, axis={literal(axis)}), 0.0)"


add(
    Rule(L.Activation, code=lambda site: site.activated(site.layer.activation, site.cast())),
    Rule(L.ReLU, code=_relu, note="with max_value, negative_slope and threshold"),
    Rule(L.LeakyReLU, code=lambda s: f"nnx.leaky_relu({s.cast()}, {number(float(s.layer.negative_slope))})"),
    Rule(L.ELU, code=lambda s: f"nnx.elu({s.cast()}, {number(float(s.layer.alpha))})"),
    Rule(
        L.PReLU,
        "PReLU",
        {"shape": lambda s: tuple(s.layer.alpha.shape), "param_dtype": dtypes()["param_dtype"]},
        {"alpha": "negative_slope"},
        lambda site: f"«m»({site.cast()})",
        note="generated module, since `nnx.PReLU` has a single slope",
    ),
    Rule(L.Softmax, code=_softmax),
    Rule(L.Identity, code=lambda site: site.cast()),
    Rule(L.ActivityRegularization, code=lambda site: site.cast(), note="its loss is dropped and reported"),
)


# normalization: Keras computes at least in float32, independent of the dtype policy
def _norm_dtype(site: Site) -> Any:
    return dtype("float32") if site.compute_dtype in HALF else None


NORM_TYPES: dict[str, Any] = {"dtype": _norm_dtype, "param_dtype": dtypes()["param_dtype"]}
SCALE_AND_BIAS: dict[str, Any] = {"use_scale": "scale", "use_bias": "center"}


def _axis(site: Site) -> Any:
    axis, rank = site.layer.axis, len(site.shape())
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return -1 if axis in (-1, rank - 1) else axis


def _batch_norm_module(site: Site) -> str:
    return "BatchNorm" if site.layer.variable_dtype == "float64" else "nnx.BatchNorm"


_batch_norm_module.names = "nnx.BatchNorm"  # type: ignore[attr-defined]


def _batch_norm(site: Site) -> str:
    frozen = "" if site.layer.trainable else ", use_running_average=True"
    mask = site.mask()
    masked = f", mask={mask}[..., None]" if mask else ""
    return f"«m»({site.x}{frozen}{masked})"


def _batch_norm_refused(site: Site) -> str | None:
    if compat.has("BatchNormalization(renorm)") and site.layer.renorm:
        return "batch renormalization"
    if site.layer.synchronized:
        return "synchronized=True"
    if site.layer.variable_dtype in HALF:
        return f"moving statistics in {site.layer.variable_dtype}"
    return None


def axes(site: Site) -> tuple[int, ...]:
    """The normalized axes as negative indices."""
    axis = site.layer.axis
    found = axis if isinstance(axis, (list, tuple)) else (axis,)
    return tuple(sorted(a if a < 0 else a - len(site.shape()) for a in found))


def _normalized(site: Site) -> int:
    return math.prod(_sizes(site))


def _sizes(site: Site) -> list[int]:
    sizes = [site.shape()[axis] for axis in axes(site)]
    if None in sizes:
        raise Refusal("the size of a normalized axis is unknown")
    return [size for size in sizes if size is not None]


def _flat(site: Site, shape: tuple[int, ...]) -> tuple[Transform, ...]:
    return (Reshape(shape, (math.prod(shape),)),) if len(shape) > 1 else ()


AXES: dict[str, Any] = {
    "num_features": _normalized,
    "epsilon": "epsilon",
    "reduction_axes": lambda site: axes(site) if axes(site) != (-1,) else -1,
    "feature_axes": lambda site: axes(site) if axes(site) != (-1,) else -1,
    **NORM_TYPES,
}
FLAT = {"gamma": To("scale", _flat, "flat"), "beta": To("bias", _flat, "flat")}


def _group_norm_call(site: Site) -> str:
    axis = _axis(site)
    if axis == -1:
        return f"«m»({site.x})"
    return f"jnp.moveaxis(«m»(jnp.moveaxis({site.x}, {number(axis)}, -1)), -1, {number(axis)})"


def _unit_axis(site: Site) -> str:
    axis = site.layer.axis
    axis = axis if isinstance(axis, int) else tuple(axis)
    return f"unit_norm({site.cast()}{'' if axis == -1 else f', {literal(axis)}'})"


add(
    Rule(
        L.BatchNormalization,
        _batch_norm_module,
        {
            "num_features": lambda site: site.shape()[site.layer.axis],
            "axis": _axis,
            "momentum": "momentum",
            "epsilon": "epsilon",
            **SCALE_AND_BIAS,
            "use_fast_variance": False,
            **NORM_TYPES,
        },
        {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"},
        _batch_norm,
        cast_output=True,
        refuse=_batch_norm_refused,
        note="same definition of momentum; frozen: `use_running_average=True`",
    ),
    Rule(
        L.LayerNormalization,
        "nnx.LayerNorm",
        {**AXES, **SCALE_AND_BIAS, "use_fast_variance": False},
        FLAT,
        cast_output=True,
        refuse=lambda s: "rms_scaling" if getattr(s.layer, "rms_scaling", False) else None,
        note="several axes: flattened weights",
    ),
    Rule(
        L.RMSNormalization,
        "nnx.RMSNorm",
        AXES,
        {"scale": To("scale", _flat, "flat")},
        cast_output=True,
    ),
    Rule(
        L.GroupNormalization,
        "nnx.GroupNorm",
        {
            "num_features": lambda site: site.shape()[site.layer.axis],
            "num_groups": "groups",
            "epsilon": "epsilon",
            **SCALE_AND_BIAS,
            "use_fast_variance": False,
            **NORM_TYPES,
        },
        {"gamma": "scale", "beta": "bias"},
        _group_norm_call,
        cast_output=True,
    ),
    Rule(L.UnitNormalization, code=_unit_axis, note="generated function"),
)


# Normalization: statistics from `adapt`
def _normalization(site: Site) -> str:
    layer = site.layer
    if layer.input_mean is None:
        return f"«m»({site.x})"
    variance = keras.ops.convert_to_numpy(layer.variance)
    mean = _without_leading_ones(site, keras.ops.convert_to_numpy(layer.mean))
    scale = _without_leading_ones(site, np.maximum(np.sqrt(variance), np.float32(keras.config.epsilon())))
    x = site.let(f"jnp.asarray({site.x}, {dtype(site.compute_dtype)})")
    return f"{mean} + {x} * {scale}" if layer.invert else f"({x} - {mean}) / {scale}"


def _without_leading_ones(site: Site, array: np.ndarray) -> str:
    """A constant without leading axes of size 1, which broadcasting restores."""
    kept = next((i for i, size in enumerate(array.shape) if size != 1), array.ndim)
    return site.builder.constant(array.reshape(array.shape[kept:]))


def _broadcast(site: Site) -> tuple[int, ...]:
    rank = len(site.shape())
    kept = [axis % rank for axis in axes(site)] if site.layer.axis is not None else []
    return tuple(int(site.shape()[i] or 1) if i in kept else 1 for i in range(rank))


def _to_broadcast(site: Site, shape: tuple[int, ...]) -> tuple[Transform, ...]:
    return (Reshape(shape, _broadcast(site)),)


def _number(value: Any, site: Site) -> str:
    value = keras.ops.convert_to_numpy(value)
    if value.ndim == 0:
        return literal(float(value))
    return f"jnp.array({literal(value.tolist())}, {dtype(site.compute_dtype)})"


def _rescaling(site: Site) -> str:
    x = f"jnp.asarray({site.x}, {dtype(site.compute_dtype)})"
    scale, offset = _number(site.layer.scale, site), _number(site.layer.offset, site)
    return f"{x} * {scale}" + ("" if offset == "0.0" else f" + {offset}")


def _normalization_module(site: Site) -> str | None:
    return "Normalization" if site.layer.input_mean is None else None


_normalization_module.names = "`Normalization`"  # type: ignore[attr-defined]

add(
    Rule(
        L.Normalization,
        _normalization_module,
        {
            "shape": _broadcast,
            "invert": "invert",
            "epsilon": lambda site: keras.config.epsilon(),
            "dtype": lambda site: dtype(site.compute_dtype),
            "param_dtype": dtypes()["param_dtype"],
        },
        {
            "mean": To("mean", _to_broadcast, "broadcast"),
            "variance": To("variance", _to_broadcast, "broadcast"),
            "count": "count",
        },
        _normalization,
        note="frozen statistics",
    ),
    Rule(L.Rescaling, code=_rescaling),
)
