"""Rules for reshaping, merging, dropout and noise layers, which have no trainable weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import layers as L

from keras_flax_bridge import keras_internals
from keras_flax_bridge.migrate.ir import Call
from keras_flax_bridge.migrate.python_text import literal, number
from keras_flax_bridge.migrate.rules.rule import Rule, add
from keras_flax_bridge.migrate.rules.site import Refusal, Site, dtype, is_float


def _flatten(site: Site) -> str:
    x = site.cast()
    if site.channels_first and len(site.shape()) > 2:
        x = f"jnp.moveaxis({x}, 1, -1)"
    return f"{x}.reshape({site.x}.shape[0], -1)" if len(site.shape()) > 1 else f"{x}[:, None]"


def _reshape(site: Site) -> str:
    target, sizes = list(site.node.outputs[0].shape[1:]), list(site.shape()[1:])
    if None not in target and [d for d in target if d != 1] == sizes and 1 not in sizes and target != sizes:
        kept = ", ".join("None" if d == 1 else ":" for d in target)  # the reshape only adds axes of size 1
        return f"{site.cast()}[:, {kept}]"
    wanted = [-1 if d is None else d for d in site.layer.target_shape]
    return f"{site.cast()}.reshape({', '.join([f'{site.x}.shape[0]', *map(number, wanted)])})"


def _padded(site: Site) -> str:
    pads = [tuple(map(int, pair)) for pair in _pairs(site.layer.padding)]
    whole = [(0, 0), (0, 0), *pads] if site.channels_first else [(0, 0), *pads, (0, 0)]
    return f"jnp.pad({site.cast()}, {literal(tuple(whole))})"


def _pairs(value: Any) -> list[tuple[int, int]]:
    return [value] if isinstance(value[0], (int, np.integer)) else list(value)


def _cropped(site: Site) -> str:
    cuts = [f"{number(a) if a else ''}:{number(-b) if b else ''}" for a, b in _pairs(site.layer.cropping)]
    return f"{site.cast()}[{', '.join([':', *([':'] if site.channels_first else []), *cuts])}]"


def _upsampled(site: Site) -> str:
    layer, x = site.layer, site.cast()
    size = (layer.size,) if isinstance(layer.size, int) else tuple(layer.size)
    first = 2 if site.channels_first else 1
    method = getattr(layer, "interpolation", "nearest")
    if method == "nearest":
        for axis, times in enumerate(size, first):
            x = f"jnp.repeat({x}, {number(times)}, axis={axis})"
        return x
    height, width = (f"{site.x}.shape[{first + i}] * {number(times)}" for i, times in enumerate(size))
    return _resized(site, x, height, width, method, False)


def _resized(site: Site, x: str, height: Any, width: Any, method: str, antialias: bool) -> str:
    batch, channels = f"{site.x}.shape[0]", f"{site.x}.shape[{1 if site.channels_first else 3}]"
    if len(site.shape()) == 3:
        raise Refusal("inputs without a batch axis")
    shape = [batch, channels, height, width] if site.channels_first else [batch, height, width, channels]
    target = f"({', '.join(map(str, shape))})"
    return f"jax.image.resize({x}, {target}, {literal(method)}, antialias={antialias})"


def _resizing(site: Site) -> str:
    layer = site.layer
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise Refusal("crop_to_aspect_ratio or pad_to_aspect_ratio")
    x = f"jnp.asarray({site.x}, {dtype(site.compute_dtype)})"
    antialias = bool(getattr(layer, "antialias", False))
    return _resized(site, x, number(layer.height), number(layer.width), layer.interpolation, antialias)


def _permuted(site: Site) -> str:
    return f"jnp.transpose({site.cast()}, {literal((0, *site.layer.dims))})"


def _masked(site: Site) -> str:
    mask = site.mask(site.node.outputs[0])
    return f"{site.cast()} * {mask}[..., None].astype({dtype(site.compute_dtype)})"


add(
    Rule(L.Flatten, code=_flatten),
    Rule(L.Reshape, code=_reshape),
    Rule(L.Permute, code=_permuted),
    Rule(L.RepeatVector, code=lambda s: f"jnp.repeat({s.cast()}[:, None], {number(s.layer.n)}, axis=1)"),
    *(Rule(layer, code=_padded) for layer in (L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D)),
    *(Rule(layer, code=_cropped) for layer in (L.Cropping1D, L.Cropping2D, L.Cropping3D)),
    *(Rule(layer, code=_upsampled) for layer in (L.UpSampling1D, L.UpSampling2D, L.UpSampling3D)),
    Rule(L.Resizing, code=_resizing, note="`jax.image.resize`"),
    Rule(L.Masking, code=_masked, note="its mask reaches the same layers as in Keras"),
)


# merging
def _operands(site: Site) -> list[str]:
    """The inputs in the compute dtype, with the axes that Keras inserts for inputs of lower rank."""
    rank = max(len(tensor.shape) for tensor in site.node.inputs)
    return [site.cast(i) + _new_axes(rank - len(tensor.shape)) for i, tensor in enumerate(site.node.inputs)]


def _new_axes(count: int) -> str:
    return f"[:, {', '.join(['None'] * count)}]" if count else ""


def _joined(operator: str) -> Callable[[Site], str]:
    return lambda site: f" {operator} ".join(_operands(site))


def _chained(function: str) -> Callable[[Site], str]:
    def code(site: Site) -> str:
        first, *rest = _operands(site)
        for operand in rest:
            first = f"jnp.{function}({first}, {operand})"
        return first

    return code


def _average(site: Site) -> str:
    operands = _operands(site)
    return f"({' + '.join(operands)}) / {len(operands)}"


def _concatenated(site: Site) -> str:
    items = ", ".join(site.cast(i) for i in range(len(site.node.inputs)))
    return f"jnp.concatenate([{items}], axis={number(site.layer.axis)})"


def _dot(site: Site) -> str:
    axes: Any = site.layer.axes
    ranks = [len(tensor.shape) for tensor in site.node.inputs]
    axes = (axes, axes) if isinstance(axes, int) else axes
    a, b = (axis % rank for axis, rank in zip(axes, ranks, strict=True))
    left = "bcdef"[: ranks[0]]
    right = ["b", *"uvwxyz"[: ranks[1] - 1]]
    right[b] = left[a]
    out = [axis for axis in left if axis != left[a]] + [axis for axis in right[1:] if axis != left[a]]
    x, y = site.cast(0), site.cast(1)
    if site.layer.normalize:
        x, y = f"unit_norm({x}, {number(a)})", f"unit_norm({y}, {number(b)})"
    product = f'jnp.einsum("{left},{"".join(right)}->{"".join(out)}", {x}, {y})'
    return product if len(out) > 1 else f"{product}[:, None]"


add(
    Rule(L.Add, code=_joined("+")),
    Rule(L.Subtract, code=_joined("-")),
    Rule(L.Multiply, code=_joined("*")),
    Rule(L.Average, code=_average),
    Rule(L.Maximum, code=_chained("maximum")),
    Rule(L.Minimum, code=_chained("minimum")),
    Rule(L.Concatenate, code=_concatenated),
    Rule(L.Dot, code=_dot),
)


# dropout and noise
def _dropout(site: Site) -> Call | None:
    layer = site.layer
    if not layer.rate:
        return None
    shape = layer.noise_shape
    if shape is not None and any(d not in (None, 1) for d in shape):
        return Call("ShapedDropout", {"rate": layer.rate, "shape": tuple(shape)})
    shared = () if shape is None else tuple(i for i, d in enumerate(shape) if d == 1)
    return Call("nnx.Dropout", {"rate": layer.rate, "broadcast_dims": shared})


_dropout.names = "`nnx.Dropout`"  # type: ignore[attr-defined]


def _spatial(site: Site) -> tuple[int, ...]:
    first = 2 if site.channels_first else 1
    return tuple(range(first, first + len(site.shape()) - 2))


def _module_or_input(site: Site) -> str:
    return f"«m»({site.cast()})" if site.has_module else site.cast()


def _noise_shape_refused(site: Site) -> str | None:
    return "a noise_shape" if getattr(site.layer, "noise_shape", None) is not None else None


def _non_float_refused(site: Site) -> str | None:
    return None if is_float(site.node.inputs[0].dtype) else "inputs that are not floating-point"


add(
    Rule(L.Dropout, _dropout, code=_module_or_input, note="separate stream of keys"),
    *(
        Rule(
            layer,
            "nnx.Dropout",
            {"rate": "rate", "broadcast_dims": _spatial},
            code=_module_or_input,
            note="`broadcast_dims`",
        )
        for layer in (L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D)
    ),
    Rule(
        L.GaussianNoise, "GaussianNoise", {"rate": "stddev"}, code=_module_or_input, refuse=_non_float_refused
    ),
    Rule(
        L.GaussianDropout,
        "GaussianDropout",
        {"rate": "rate"},
        code=_module_or_input,
        refuse=_non_float_refused,
    ),
    Rule(
        L.AlphaDropout, "AlphaDropout", {"rate": "rate"}, code=_module_or_input, refuse=_noise_shape_refused
    ),
)


# layers of keras.applications
HELPERS = keras_internals.application_layers()


def _scaled_sum(site: Site) -> str:
    return f"{site.cast(0)} + {site.cast(1)} * {number(float(site.layer.scale))}"


add(
    Rule(
        HELPERS["LayerScale"],
        "Scale",
        {"features": "projection_dim", "init": "init_values"},
        {"gamma": "scale"},
        lambda site: f"«m»({site.cast()})",
        note="of ConvNeXt",
    ),
    Rule(
        HELPERS["StochasticDepth"],
        "nnx.Dropout",
        {"rate": "drop_path_rate", "broadcast_dims": lambda s: tuple(range(1, len(s.shape())))},
        code=_module_or_input,
        note="of ConvNeXt",
    ),
    Rule(HELPERS["CustomScaleLayer"], code=_scaled_sum, note="of InceptionResNet"),
)
