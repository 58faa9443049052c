"""Rules for operations of `keras.ops`, as tables by module and class of the operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keras_flax_bridge.migrate.python_text import Raw, dtype_name, keyword_name, literal, number
from keras_flax_bridge.migrate.rules.site import Refusal, Site

INFIX = {
    "Add": "+",
    "Subtract": "-",
    "Multiply": "*",
    "Divide": "/",
    "TrueDivide": "/",
    "FloorDivide": "//",
    "Mod": "%",
    "Power": "**",
    "Matmul": "@",
    "Greater": ">",
    "GreaterEqual": ">=",
    "Less": "<",
    "LessEqual": "<=",
    "Equal": "==",
    "NotEqual": "!=",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "BitwiseXor": "^",
}


class Function(NamedTuple):
    """A function of jax, and the attributes of the operation that become keyword arguments.

    A pair is the name of the argument and of the attribute. Values equal to `DEFAULTS` are omitted.
    """

    name: str
    attributes: tuple[Any, ...] = ()


AXIS, KEPT = ("axis",), ("axis", "keepdims")
DEFAULTS: dict[str, Any] = {"keepdims": False, "initial": None, "dtype": None}

NUMPY: dict[str, Function] = {
    # class: function, attributes
    **{name: Function(f"jnp.{name.lower()}") for name in (
        "Abs", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctan2", "Arctanh", "Cbrt",
        "Ceil", "Conj", "Cos", "Cosh", "Exp", "Exp2", "Expm1", "Floor", "Hypot", "Imag", "Inner",
        "Isfinite", "Isinf", "Isnan", "Log", "Log10", "Log1p", "Log2", "Logaddexp", "Maximum",
        "Minimum", "Negative", "Outer", "Ravel", "Real", "Reciprocal", "Sign", "Sin", "Sinc", "Sinh",
        "Sqrt", "Square", "Tan", "Tanh", "Trunc", "Vdot", "Where", "Dot", "Hstack", "Vstack",
    )},
    **{name: Function(f"jnp.{name.lower()}", KEPT) for name in (
        "All", "Any", "Max", "Mean", "Median", "Min", "Prod", "Std", "Sum", "Var", "Nanmax",
        "Nanmean", "Nanmin", "Nansum",
    )},
    **{name: Function(f"jnp.{name.lower()}", AXIS) for name in (
        "Concatenate", "Flip", "Sort", "Stack", "Take", "Cumsum", "Cumprod",
    )},
    "Absolute": Function("jnp.abs"),
    "Amax": Function("jnp.max", KEPT),
    "Amin": Function("jnp.min", KEPT),
    "Append": Function("jnp.append", AXIS),
    "Argmax": Function("jnp.argmax", KEPT),
    "Argmin": Function("jnp.argmin", KEPT),
    "Argsort": Function("jnp.argsort", AXIS),
    "BroadcastTo": Function("jnp.broadcast_to", ("shape",)),
    "Clip": Function("jnp.clip", (("x_min", "min"), ("x_max", "max"))),
    "Cross": Function("jnp.cross", ("axisa", "axisb", "axisc", "axis")),
    "Diagonal": Function("jnp.diagonal", ("offset", "axis1", "axis2")),
    "Diff": Function("jnp.diff", ("n", "axis")),
    "ExpandDims": Function("jnp.expand_dims", AXIS),
    "LogicalAnd": Function("jnp.logical_and"),
    "LogicalNot": Function("jnp.logical_not"),
    "LogicalXor": Function("jnp.logical_xor"),
    "Moveaxis": Function("jnp.moveaxis", ("source", "destination")),
    "OnesLike": Function("jnp.ones_like", ("dtype",)),
    "Repeat": Function("jnp.repeat", ("repeats", "axis")),
    "Roll": Function("jnp.roll", ("shift", "axis")),
    "Round": Function("jnp.round", ("decimals",)),
    "Squeeze": Function("jnp.squeeze", AXIS),
    "Swapaxes": Function("jnp.swapaxes", ("axis1", "axis2")),
    "TakeAlongAxis": Function("jnp.take_along_axis", AXIS),
    "Tensordot": Function("jnp.tensordot", ("axes",)),
    "Tile": Function("jnp.tile", (("repeats", "reps"),)),
    "Transpose": Function("jnp.transpose", ("axes",)),
    "Tril": Function("jnp.tril", ("k",)),
    "Triu": Function("jnp.triu", ("k",)),
    "Trace": Function("jnp.trace", ("offset", "axis1", "axis2")),
    "ZerosLike": Function("jnp.zeros_like", ("dtype",)),
}  # fmt: skip
NN: dict[str, Function] = {
    "Relu": Function("nnx.relu"),
    "Relu6": Function("jax.nn.relu6"),
    "Sigmoid": Function("nnx.sigmoid"),
    "Softplus": Function("nnx.softplus"),
    "Softsign": Function("nnx.soft_sign"),
    "Silu": Function("nnx.silu"),
    "LogSigmoid": Function("nnx.log_sigmoid"),
    "LeakyRelu": Function("nnx.leaky_relu", ("negative_slope",)),
    "HardSigmoid": Function("nnx.hard_sigmoid"),
    "HardSilu": Function("nnx.hard_silu"),
    "HardTanh": Function("nnx.hard_tanh"),
    "Elu": Function("nnx.elu", ("alpha",)),
    "Selu": Function("nnx.selu"),
    "Celu": Function("nnx.celu", ("alpha",)),
    "Gelu": Function("nnx.gelu", ("approximate",)),
    "Glu": Function("nnx.glu", AXIS),
    "Softmax": Function("nnx.softmax", AXIS),
    "LogSoftmax": Function("nnx.log_softmax", AXIS),
    "Squareplus": Function("jax.nn.squareplus", ("b",)),
    "SparsePlus": Function("jax.nn.sparse_plus"),
    "SparseSigmoid": Function("jax.nn.sparse_sigmoid"),
}
CORE: dict[str, Function] = {"StopGradient": Function("jax.lax.stop_gradient")}
MATH: dict[str, Function] = {
    "Rsqrt": Function("jax.lax.rsqrt"),
    "Erf": Function("jax.lax.erf"),
    "Logsumexp": Function("jax.nn.logsumexp", KEPT),
}
LINALG: dict[str, Function] = {
    "Norm": Function("jnp.linalg.norm", ("ord", "axis", "keepdims")),
    "Inv": Function("jnp.linalg.inv"),
    "Det": Function("jnp.linalg.det"),
    "Cholesky": Function("jnp.linalg.cholesky"),
}
FUNCTIONS = {
    f"{module}.{name}": function
    for module, table in (
        ("numpy", NUMPY),
        ("nn", NN),
        ("core", CORE),
        ("math", MATH),
        ("linalg", LINALG),
    )
    for name, function in table.items()
}


def operation_code(site: Site) -> str:
    """The expression of the call of an operation.

    Raises:
        Refusal: if there is no rule for it.
    """
    name = operation_name(site.layer)
    if name in SPECIAL:
        return SPECIAL[name](site)
    short = name.removeprefix("numpy.")
    if short in INFIX:
        a, b = _positional(site, 2)
        return f"{a} {INFIX[short]} {b}"
    if name in FUNCTIONS:
        return _called(site, FUNCTIONS[name])
    raise Refusal("no rule for this operation of keras.ops")


def operation_name(operation: Any) -> str:
    """The module and class of an operation of Keras, such as ``numpy.Mean``."""
    module = type(operation).__module__
    inside = module.startswith("keras.") and ".ops." in module
    return f"{module.rpartition('.')[2]}.{type(operation).__name__}" if inside else "user-defined"


def _positional(site: Site, count: int) -> list[str]:
    values = [*site.node.args, *site.node.kwargs.values()]
    if len(values) != count:
        raise Refusal(f"{len(values)} arguments")
    return [operand(site, value) for value in values]


def operand(site: Site, value: Any) -> str:
    """The expression of an argument, in parentheses if it is a negative number."""
    text = site.text(value)
    return f"({text})" if text.startswith("-") else text


def _called(site: Site, function: Function) -> str:
    named = [(n, n) if isinstance(n, str) else n for n in function.attributes]
    options = {name: getattr(site.layer, attribute) for attribute, name in named}
    arguments = [site.text(value) for value in site.node.args]
    given = {keyword_name(name): v for name, v in site.node.kwargs.items() if v is not None}
    arguments += [f"{name}={site.text(v)}" for name, v in given.items()]
    for name, value in options.items():
        if name in DEFAULTS and value is DEFAULTS[name]:
            continue
        if name == "axis" and value is None and not function.name.startswith("jnp.flip"):
            continue
        if name == "dtype":
            value = Raw(dtype_name(value))
        arguments.append(f"{name}={_frozen(site, value)}")
    return f"{function.name}({', '.join(arguments)})"


def _frozen(site: Site, value: Any) -> str:
    return site.text(tuple(value) if isinstance(value, list) else value)


# operations with a special expression
def _item(site: Site) -> str:
    x, key = [*site.node.args, *site.node.kwargs.values()]
    keys = key if isinstance(key, tuple) else (key,)
    return f"{site.text(x)}[{', '.join(_index(site, k) for k in keys)}]"


def _index(site: Site, key: Any) -> str:
    if not isinstance(key, slice):
        return site.text(key)
    parts = ["" if part is None else site.text(part) for part in (key.start, key.stop)]
    step = "" if key.step is None else f":{site.text(key.step)}"
    return ":".join(parts) + step


def _reshape(site: Site) -> str:
    x = site.text(site.node.inputs[0])
    shape = site.layer.newshape
    shape = (shape,) if isinstance(shape, int) else shape
    unknown = [i for i, d in enumerate(shape) if d is None]
    sizes = [f"{x}.shape[{i}]" if i in unknown else site.text(d) for i, d in enumerate(shape)]
    if len(unknown) == 1 and -1 not in shape and unknown[0] != 0:
        sizes[unknown[0]] = "-1"
    return f"{x}.reshape({', '.join(sizes)})"


def _cast(site: Site) -> str:
    return f"{site.text(site.node.inputs[0])}.astype({dtype_name(site.layer.dtype)})"


def _to_tensor(site: Site) -> str:
    dtype = site.layer.dtype
    return _cast(site) if dtype and dtype != site.node.inputs[0].dtype else site.text(site.node.inputs[0])


def _einsum(site: Site) -> str:
    operands = ", ".join(map(site.text, site.node.args))
    return f"jnp.einsum({literal(site.layer.subscripts)}, {operands})"


def _split(site: Site) -> str:
    where: Any = site.layer.indices_or_sections
    where = where if isinstance(where, int) else [int(i) for i in where]
    return f"jnp.split({site.x}, {literal(where)}, axis={number(site.layer.axis)})"


def _unstack(site: Site) -> str:
    axis, rank = site.layer.axis, len(site.shape())
    before = ":, " * (axis % rank)
    return ", ".join(f"{site.x}[{before}{i}]" for i in range(len(site.node.outputs)))


def _pad(site: Site) -> str:
    layer = site.layer
    width = tuple(tuple(int(v) for v in pair) for pair in layer.pad_width)
    value = site.argument("constant_values")
    options = "" if layer.mode == "constant" else f", mode={literal(layer.mode)}"
    options += f", constant_values={site.text(value)}" if value is not None else ""
    return f"jnp.pad({site.x}, {literal(width)}{options})"


def _slice(site: Site) -> str:
    start = site.argument("start_indices")
    sizes = [site.shape()[i] if d in (-1, None) else d for i, d in enumerate(site.layer.shape)]
    if not all(isinstance(i, (int, np.integer)) for i in start) or None in sizes:
        raise Refusal("a slice whose start or size is unknown")
    cuts = (f"{number(a) if a else ''}:{number(a + n)}" for a, n in zip(start, sizes, strict=True))
    return f"{site.x}[{', '.join(cuts)}]"


def _one_hot(site: Site) -> str:
    layer = site.layer
    options = f", dtype={dtype_name(layer.dtype)}" if layer.dtype != "float32" else ""
    options += f", axis={number(layer.axis)}" if layer.axis != -1 else ""
    return f"nnx.one_hot({site.x}, {number(layer.num_classes)}{options})"


def _attention(site: Site) -> str:
    layer = site.layer
    if layer.attn_logits_soft_cap is not None:
        raise Refusal("attn_logits_soft_cap")
    arguments = [site.text(site.argument(name)) for name in ("query", "key", "value")]
    named = {name: site.argument(name) for name in ("bias", "mask", "scale")}
    options = [f"{name}={site.text(value)}" for name, value in named.items() if value is not None]
    options += ["is_causal=True"] if layer.is_causal else []
    return f"jax.nn.dot_product_attention({', '.join([*arguments, *options])})"


def _normalize(site: Site) -> str:
    layer = site.layer
    if layer.order != 2 or layer.epsilon is None:
        raise Refusal("an order other than 2, or no epsilon")
    return f"unit_norm({site.x}, {site.text(layer.axis)}, {number(layer.epsilon)})"


def _moments(site: Site) -> str:
    layer = site.layer
    options = f"axis={_frozen(site, layer.axes)}" + (", keepdims=True" if layer.keepdims else "")
    return f"jnp.mean({site.x}, {options}), jnp.var({site.x}, {options})"


def _or(site: Site) -> str:
    a, b = _positional(site, 2)  # the masks of tensors that are added are usually the same tensor
    return a if a == b else f"jnp.logical_or({a}, {b})"


def _top_k(site: Site) -> str:
    return f"jax.lax.top_k({site.x}, {number(site.layer.k)})"


SPECIAL: dict[str, Callable[[Site], str]] = {
    "numpy.GetItem": _item,
    "numpy.LogicalOr": _or,
    "numpy.Reshape": _reshape,
    "numpy.Einsum": _einsum,
    "numpy.Split": _split,
    "numpy.Pad": _pad,
    "nn.OneHot": _one_hot,
    "nn.DotProductAttention": _attention,
    "nn.Normalize": _normalize,
    "nn.Moments": _moments,
    "core.Cast": _cast,
    "core.ConvertToTensor": _to_tensor,
    "core.Slice": _slice,
    "core.Unstack": _unstack,
    "math.TopK": _top_k,
}
