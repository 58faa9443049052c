"""Traces the `call` of a layer without a rule on symbolic tensors, with checks.

Tracing runs the Python code of `call` once, so three cases would give wrong results silently: values that do
not depend on an input become constants (detected by unmapped variables), assignments run during tracing
(detected by their effects), and ``if training:`` keeps one branch (detected by tracing both).
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedLayerError
from keras_flax_bridge.keras_internals import Node
from keras_flax_bridge.migrate.python_text import dtype_name
from keras_flax_bridge.migrate.rules.site import Refusal, is_float


def trace_call(builder: Any, node: Node) -> list[Any]:
    """Traces the `call` of a layer on new symbolic tensors in place of the inputs, and returns its outputs.

    Raises:
        Refusal: if `call` can't be traced, or the trace would not be equivalent.
    """
    layer = node.operation
    fresh: dict[int, Any] = {}

    def replace_tensor(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        if id(value) not in fresh:
            fresh[id(value)] = _symbolic_input(builder, layer, value)
        return fresh[id(value)]

    args = keras.tree.map_structure(replace_tensor, node.args)
    kwargs = keras.tree.map_structure(replace_tensor, node.kwargs)
    builder.names |= keras_internals.child_names(layer)
    inner = keras_internals.functional(layer)
    if inner is not None:
        rerun = keras_internals.rerun(inner, args[0] if args else next(iter(kwargs.values())))
        builder.aliases |= rerun.aliases
        builder.context.kept.append(rerun)
        leaves: list[Any] = keras.tree.flatten(rerun.outputs)
        return leaves
    outputs: list[Any] = keras.tree.flatten(_trace_in_both_modes(layer, args, kwargs))
    builder.context.kept += outputs
    return outputs


def _symbolic_input(builder: Any, layer: Any, tensor: Any) -> Any:
    """A symbolic tensor for an input, in the dtype to which Keras casts the input."""
    cast = layer.autocast and is_float(tensor.dtype)
    dtype = layer.compute_dtype if cast else tensor.dtype
    text = builder.text(tensor)
    code = text if str(dtype) == str(tensor.dtype) else f"{text}.astype({dtype_name(dtype)})"
    new = keras.KerasTensor(tensor.shape, dtype=dtype)
    builder.name(new, builder.let(code, "x", tensor.shape, str(dtype)))
    mask = keras_internals.mask_of(tensor)
    if mask is not None:
        new_mask = keras.KerasTensor(mask.shape, dtype="bool")
        builder.name(new_mask, builder.text(mask))
        keras_internals.set_mask(new, new_mask)
    return new


def _trace_in_both_modes(layer: Any, args: Any, kwargs: Any) -> Any:
    """The outputs of `call`, after checking that its graph is the same in training and inference.

    Raises:
        Refusal: if `call` can't be traced.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    if "training" not in inspect.signature(layer.call).parameters:
        return _trace(layer, args, kwargs)
    outputs = _trace(layer, args, {**kwargs, "training": False})
    training = _trace(layer, args, {**kwargs, "training": True})
    if _fingerprint(outputs) != _fingerprint(training):
        raise Refusal("no rule, and its call computes a different graph in training (`if training:`)")
    return outputs


def _trace(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with keras.StatelessScope() as scope:
        try:
            outputs = layer.call(*args, **kwargs)
        except Refusal:
            raise
        except Exception as error:
            said = str(error).strip().splitlines()
            raise Refusal(
                f"no rule, and its call can't be traced on symbolic tensors ({type(error).__name__}: "
                f"{said[0][:120] if said else ''})"
            ) from error
    held = [entry for collection in keras_internals.collect_tracked(layer) for entry in collection]
    assigned = [e.variable.name for e in held if scope.get_current_value(e.variable) is not None]
    if assigned:
        raise Refusal(f"no rule, and its call assigns to {', '.join(assigned)} outside of its sublayers")
    if not all(isinstance(output, keras.KerasTensor) for output in keras.tree.flatten(outputs)):
        raise Refusal("no rule, and its call returns values that do not depend on its inputs")
    return outputs


def _fingerprint(outputs: Any) -> list[Any]:
    """A description of a graph that can be compared: its operations and their inputs."""
    order: dict[int, int] = {}
    form: list[Any] = []

    def number(tensor: Any) -> int:
        if id(tensor) not in order:
            node = keras_internals.producer(tensor)
            if node is not None:
                wires = tuple(number(source) for source in node.inputs)
                form.append((_operation_key(node), wires))
                for output in node.outputs:
                    order[id(output)] = len(order)
            else:
                order[id(tensor)] = len(order)
                form.append(("in", tuple(tensor.shape)))
        return order[id(tensor)]

    found = [number(tensor) for tensor in keras.tree.flatten(outputs)]
    return [*form, found]


def _operation_key(node: Node) -> Any:
    operation = node.operation
    if isinstance(operation, keras.layers.Layer):
        return id(operation)
    settings = {n: v for n, v in vars(operation).items() if not n.startswith("_") and n != "name"}
    plain = [a for a in keras.tree.flatten(node.args) if not isinstance(a, keras.KerasTensor)]
    return type(operation).__name__, repr(sorted(settings.items())), repr(plain)


def as_functional(model: Any) -> Any:
    """A subclassed model as a Functional model that shares its layers and variables.

    Raises:
        UnsupportedLayerError: if its `call` can't be traced.
    """
    shapes = keras_internals.build_shapes(model)
    fix = "Wrap it with kfb.ToNNX(model), or register a rule for the layers that its call implements."
    if shapes is None:
        raise UnsupportedLayerError(
            f"model {model.name!r}",
            got="a subclassed model whose input shapes are unknown",
            expected="a model that was called on a batch",
            fix=f"Call it once on a batch. {fix}",
        )
    inputs = keras.tree.map_shape_structure(lambda s: keras.Input(batch_shape=(None, *s[1:])), shapes)
    try:
        outputs = _trace_in_both_modes(model, (inputs,), {})
    except Refusal as refusal:
        raise UnsupportedLayerError(
            f"model {model.name!r}",
            got=f"a {type(model).__name__}: {refusal}",
            expected="a call that can be traced to one graph",
            fix=fix,
        ) from None
    return keras.Model(inputs, outputs, name="functional")
