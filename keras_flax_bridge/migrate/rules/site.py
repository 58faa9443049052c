"""The argument of a rule: a call of a layer or operation, with the expressions of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import Node
from keras_flax_bridge.migrate.python_text import Raw, Unwritable, dtype_name, literal
from keras_flax_bridge.migrate.rules.activations import ACTIVATIONS


class Refusal(Exception):  # noqa: N818 - it never leaves the package
    """Raised by a rule, with the reason why a layer or operation can't be converted."""


class Builder(Protocol):
    """The interface of the graph builder for rules."""

    def text(self, tensor: Any) -> str:
        """The expression of a tensor."""

    def let(self, code: str, hint: str, shape: Any, dtype: str) -> str:
        """Assigns an expression that is used twice to a value."""

    def name(self, tensor: Any, code: str) -> None:
        """Sets the expression of a tensor."""

    def constant(self, array: np.ndarray) -> str:
        """The expression of a constant array."""

    def variable(self, variable: Any) -> str:
        """The expression of a Keras variable that an operation reads directly."""


class Site:
    """One call of a layer or an operation.

    Attributes:
        layer: the layer or operation.
        node: the node of the call in the graph of Keras.
    """

    def __init__(self, builder: Builder, node: Node):
        self.builder = builder
        self.node = node
        self.layer = node.operation
        self.has_module = False

    # inputs
    @property
    def x(self) -> str:
        """The expression of the first input."""
        return self.builder.text(self.node.inputs[0])

    def xs(self) -> list[str]:
        """The expressions of all inputs."""
        return [self.builder.text(tensor) for tensor in self.node.inputs]

    def cast(self, index: int = 0) -> str:
        """The expression of an input in the layer's compute dtype, as Keras casts it."""
        return self.cast_tensor(self.node.inputs[index])

    def cast_tensor(self, tensor: Any) -> str:
        """The expression of a tensor in the layer's compute dtype, as Keras casts it."""
        text = self.builder.text(tensor)
        differs = is_float(tensor.dtype) and tensor.dtype != self.compute_dtype
        return f"{text}.astype({dtype(self.compute_dtype)})" if self.layer.autocast and differs else text

    def shape(self, index: int = 0) -> tuple[int | None, ...]:
        """The shape of an input, with None for unknown sizes."""
        return tuple(self.node.inputs[index].shape)

    def argument(self, name: str) -> Any:
        """The value of an argument by name, such as a KerasTensor; None if it was not passed."""
        return self.node.argument(name)

    def text(self, value: Any) -> str:
        """The expression of an argument: a tensor, a variable, an array, or a structure of them."""
        if isinstance(value, keras.KerasTensor):
            return self.builder.text(value)
        if isinstance(value, keras.Variable):
            return self.builder.variable(value)
        if isinstance(value, (list, tuple)) and not isinstance(value, str):
            items = ", ".join(map(self.text, value))
            return f"[{items}]" if isinstance(value, list) else f"({items},)"
        if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
            return self.builder.constant(np.asarray(value))
        try:
            return literal(value)
        except Unwritable as error:
            raise Refusal(f"{error} (in an argument of {type(self.layer).__name__})") from None

    def mask(self, tensor: Any = None) -> str | None:
        """The expression of the mask of a tensor, by default of the first input, or None."""
        recorded = self.node.kwargs.get("mask") if tensor is None else None
        if isinstance(recorded, keras.KerasTensor):  # the mask that Keras passes when it runs the graph
            return self.builder.text(recorded)
        mask = keras_internals.mask_of(self.node.inputs[0] if tensor is None else tensor)
        return None if mask is None else self.builder.text(mask)

    # dtypes
    @property
    def compute_dtype(self) -> str:
        """The dtype that the layer computes in."""
        dtype: str = self.layer.compute_dtype
        return dtype

    @property
    def channels_first(self) -> bool:
        """Whether the data format of the layer is channels first."""
        return getattr(self.layer, "data_format", None) == "channels_first"

    @property
    def channels(self) -> int:
        """The size of the channel axis of the first input."""
        size = self.shape()[1 if self.channels_first else -1]
        if size is None:
            raise Refusal("the size of the channel axis is unknown")
        return size

    # outputs
    def let(self, code: str, hint: str = "x") -> str:
        """Assigns an expression that is used twice to a value, unless it is a value already."""
        output = self.node.outputs[0]
        return self.builder.let(code, hint, output.shape, output.dtype)

    def activated(self, activation: Any, code: str) -> str:
        """The expression with a Keras activation applied."""
        template = activation_template(activation)
        if template.count("{x}") > 1:
            code = self.let(code)
        return template.format(x=code)


def activation_template(activation: Any) -> str:
    """The expression of a Keras activation, with the placeholder ``{x}``.

    Raises:
        Refusal: if the activation is not one of Keras.
    """
    if activation is None:
        return "{x}"
    try:
        return ACTIVATIONS[activation]
    except (KeyError, TypeError):
        name = getattr(activation, "__name__", type(activation).__name__)
        raise Refusal(f"the activation {name!r} has no counterpart in Flax") from None


def activation_function(activation: Any) -> Raw:
    """A Keras activation as a function in the source: its name, or a lambda if it has none."""
    template = activation_template(activation)
    if template.endswith("({x})") and template.count("{x}") == 1 and "(" not in template[:-5]:
        return Raw(template[:-5])
    return Raw("lambda x: " + template.format(x="x"))


def dtypes(**names: str) -> dict[str, Callable[[Site], Any]]:
    """The config of ``dtype`` and ``param_dtype`` that matches the dtype policy of the layer."""
    return {"dtype": _dtype, "param_dtype": lambda site: dtype(site.layer.variable_dtype)}


def _dtype(site: Site) -> Any:
    # None promotes inputs and weights to a common dtype, which differs from Keras for half-precision dtypes
    half = site.compute_dtype in HALF or site.compute_dtype != site.layer.variable_dtype
    return dtype(site.compute_dtype) if half else None


HALF = ("bfloat16", "float16")


def dtype(name: str) -> Raw:
    """The expression of a dtype in the source."""
    return Raw(dtype_name(name))


def is_float(name: Any) -> bool:
    """Whether a dtype is a real floating-point dtype."""
    return "float" in str(name)
