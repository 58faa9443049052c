"""Rules for convolution and pooling layers."""

from __future__ import annotations

import math
from typing import Any

from keras import layers as L

from keras_flax_bridge.migrate.ir import Call
from keras_flax_bridge.migrate.python_text import literal
from keras_flax_bridge.migrate.rules.core import WEIGHT_AND_BIAS, plain
from keras_flax_bridge.migrate.rules.rule import Rule, To, add
from keras_flax_bridge.migrate.rules.site import Site, dtypes
from keras_flax_bridge.migrate.transforms import Reshape, Transform


def sizes(value: Any) -> tuple[int, ...]:
    """A setting as one number for each axis."""
    return (value,) if isinstance(value, int) else tuple(int(v) for v in value)


def one_for_all(value: Any) -> Any:
    """A setting as a single number if it is equal for all axes, otherwise as a tuple."""
    found = sizes(value)
    return found[0] if len(set(found)) == 1 else found


def channels_last(site: Site, x: str) -> str:
    """The input in channels-last format."""
    return f"jnp.moveaxis({x}, 1, -1)" if site.channels_first else x


def channels_back(site: Site, y: str) -> str:
    """A channels-last output in the data format of the layer."""
    return f"jnp.moveaxis({y}, -1, 1)" if site.channels_first else y


def convolved(site: Site) -> str:
    """The call of a convolution, which Flax computes in channels-last format."""
    return channels_back(site, f"«m»({channels_last(site, site.x)})")


COMMON: dict[str, Any] = {
    "kernel_size": lambda site: sizes(site.layer.kernel_size),
    "strides": lambda site: one_for_all(site.layer.strides),
    "padding": lambda site: site.layer.padding.upper(),
    "kernel_dilation": lambda site: one_for_all(site.layer.dilation_rate),
    "use_bias": "use_bias",
    **dtypes(),
}
CONV: dict[str, Any] = {
    "in_features": lambda site: site.channels,
    "out_features": "filters",
    **COMMON,
    "feature_group_count": "groups",
}


def _depth(site: Site) -> int:
    depth: int = site.channels * site.layer.depth_multiplier
    return depth


def _depthwise(site: Site, shape: tuple[int, ...]) -> tuple[Transform, ...]:
    *window, channels, multiplier = shape
    return (Reshape(shape, (*window, 1, channels * multiplier)),)


DEPTHWISE: dict[str, Any] = {
    "in_features": lambda site: site.channels,
    "out_features": _depth,
    **COMMON,
    "feature_group_count": lambda site: site.channels,
}


def _separable(site: Site) -> Call:
    layer = site.layer
    depthwise = {name: value for name, value in DEPTHWISE.items() if name != "use_bias"}
    first = {**_values(depthwise, site), "use_bias": False}
    window = (1,) * len(sizes(layer.kernel_size))
    second = {
        "in_features": _depth(site),
        "out_features": layer.filters,
        "kernel_size": window,
        "use_bias": layer.use_bias,
        **_values(dtypes(), site),
    }
    return Call("nnx.Sequential", {"*": [Call("nnx.Conv", first), Call("nnx.Conv", second)]}, rngs=False)


_separable.names = "two `nnx.Conv`"  # type: ignore[attr-defined]


def _values(config: dict[str, Any], site: Site) -> dict[str, Any]:
    return {n: getattr(site.layer, v) if isinstance(v, str) else v(site) for n, v in config.items()}


def _transposed_padding(site: Site) -> Any:
    """The padding before and after each spatial axis that reproduces the output of Keras."""
    layer = site.layer
    dilation = sizes(layer.dilation_rate)
    strides, windows = sizes(layer.strides), sizes(layer.kernel_size)
    count, outputs = len(windows), layer.output_padding
    extra: Any = (outputs,) * count if outputs is None or isinstance(outputs, int) else outputs
    return tuple(_pads(*axis, layer.padding) for axis in zip(windows, strides, dilation, extra, strict=True))


def _pads(window: int, stride: int, dilation: int, extra: int | None, padding: str) -> tuple[int, int]:
    reach = (window - 1) * dilation + 1
    if padding == "valid":
        return reach - 1, reach - 1 + (max(stride - reach, 0) if extra is None else extra)
    total = stride + reach - 2 if extra is None else reach + reach % 2 - 2 + extra
    before = min((total + 1) // 2, reach - 1)
    return before, total - before


add(
    *(
        Rule(
            layer,
            "nnx.Conv",
            CONV,
            WEIGHT_AND_BIAS,
            convolved,
            activation="activation",
            refuse=plain,
            note="valid, same and causal; groups; channels first",
        )
        for layer in (L.Conv1D, L.Conv2D, L.Conv3D)
    ),
    *(
        Rule(
            layer,
            "nnx.Conv",
            DEPTHWISE,
            {"kernel": To("kernel", _depthwise, "reshape"), "bias": "bias"},
            convolved,
            activation="activation",
            note="one group per channel",
        )
        for layer in (L.DepthwiseConv1D, L.DepthwiseConv2D)
    ),
    *(
        Rule(
            layer,
            _separable,
            {},
            {
                "depthwise_kernel": To("layers/0/kernel", _depthwise, "reshape"),
                "pointwise_kernel": "layers/1/kernel",
                "bias": "layers/1/bias",
            },
            convolved,
            activation="activation",
            note="depthwise, then 1x1",
        )
        for layer in (L.SeparableConv1D, L.SeparableConv2D)
    ),
    *(
        Rule(
            layer,
            "nnx.ConvTranspose",
            {
                "in_features": lambda site: site.channels,
                "out_features": "filters",
                **COMMON,
                "padding": _transposed_padding,
                "transpose_kernel": True,
            },
            WEIGHT_AND_BIAS,
            convolved,
            activation="activation",
            note="explicit padding",
        )
        for layer in (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
    ),
)


# pooling
def _pooled(function: str) -> Any:
    def code(site: Site) -> str:
        layer = site.layer
        x = channels_last(site, site.cast())
        window = literal(sizes(layer.pool_size))
        strides, padding = sizes(layer.strides), layer.padding.upper()
        options = f", strides={literal(strides)}" if math.prod(strides) > 1 else ""
        options += f", padding={literal(padding)}" if padding != "VALID" else ""
        if function == "avg_pool" and padding == "SAME":
            options += ", count_include_pad=False"
        return channels_back(site, f"nnx.{function}({x}, {window}{options})")

    return code


def _global(function: str) -> Any:
    def code(site: Site) -> str:
        rank = len(site.shape())
        first = 2 if site.channels_first else 1
        axes: Any = tuple(range(first, first + rank - 2))
        axes = axes[0] if len(axes) == 1 else axes
        options = f"axis={literal(axes)}" + (", keepdims=True" if site.layer.keepdims else "")
        mask = site.mask() if type(site.layer) is L.GlobalAveragePooling1D else None
        if mask:
            options += f", where={mask}{'[:, None]' if site.channels_first else '[..., None]'}"
        return f"jnp.{function}({site.cast()}, {options})"

    return code


MAX = (L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D)
AVERAGE = (L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D)
GLOBAL_MAX = (L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D)
GLOBAL_AVERAGE = (L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D)

add(
    *(Rule(layer, code=_pooled("max_pool"), note="`nnx.max_pool`") for layer in MAX),
    *(
        Rule(layer, code=_pooled("avg_pool"), note="`nnx.avg_pool`; padding is excluded from the mean")
        for layer in AVERAGE
    ),
    *(Rule(layer, code=_global("max"), note="`jnp.max`") for layer in GLOBAL_MAX),
    *(Rule(layer, code=_global("mean"), note="`jnp.mean`; with masks") for layer in GLOBAL_AVERAGE),
)
