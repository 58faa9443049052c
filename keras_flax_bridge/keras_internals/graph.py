"""The graph that Keras drew: which layer or operation was called on which tensors."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask  # no public name
from keras.src.utils.naming import to_snake_case

from keras_flax_bridge.keras_internals.keys import (
    Names,
    _children,
    _layer_bookkeeping,
    graph_children,
    graph_classes,
    has_auto_name,
    held_by,
)
from keras_flax_bridge.keras_internals.models import all_layers


class Node(NamedTuple):
    """One call in a graph.

    Attributes:
        operation: the layer, model or operation that was called.
        args: positional arguments, `keras.KerasTensor` where a tensor stood.
        kwargs: named arguments.
        inputs: the tensors among them, in Keras's order.
        outputs: the tensors that came out, flat.
        key: which call it is; the same for all outputs of one call.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    key: int

    def argument(self, name: str) -> Any:
        """The argument of that name, however it was passed; its default where it was not."""
        bound = inspect.signature(self.operation.call).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments.get(name, bound.arguments.get("kwargs", {}).get(name))


def functional(model: Any) -> Any:
    """The Functional model that `model` is or contains; None if there is no graph."""
    if isinstance(model, keras.Sequential):
        return model._functional  # the graph that a built Sequential makes of itself
    is_graph = isinstance(model, graph_classes()) and type(model).call is graph_classes()[0].call
    return model if is_graph else None


def structure(model: Any) -> tuple[Any, Any]:
    """Inputs and outputs of a Functional model, in the structures that it is called with."""
    # `_inputs_struct`, `_outputs_struct`: `inputs` and `outputs` are flat
    return model._inputs_struct, model._outputs_struct


def producer(tensor: Any) -> Node | None:
    """The call that a tensor came out of; None for an input, and for one that no call made."""
    history = getattr(tensor, "_keras_history", None)  # where Keras keeps the graph
    if history is None or history.operation is None:
        return None
    node = history.operation._inbound_nodes[history.node_index]
    return None if node.is_input else _node(node)


def _node(node: Any) -> Node:
    arguments = node.arguments
    return Node(
        node.operation,
        tuple(arguments.args),
        dict(arguments.kwargs),
        tuple(arguments.keras_tensors),
        tuple(node.outputs),
        id(node),
    )


def mask_of(tensor: Any) -> Any:
    """The mask that Keras computed along with a tensor, or None."""
    return get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Gives a tensor a mask, as Keras does."""
    set_keras_mask(tensor, mask)


def layer_names(model: Any) -> dict[int, str]:
    """The structural name of every layer of a graph, by the layer's id."""
    return {id(layer): path[0] for path, layer in graph_children(model.layers, Names())}


@contextlib.contextmanager
def tracing(layer: Any) -> Iterator[None]:
    """Inside, layers can be called on KerasTensors without a trace of it in their own graphs."""
    held = all_layers(layer)
    before = [(p, list(p._inbound_nodes), list(p._outbound_nodes)) for p in held]
    try:
        yield
    finally:
        for part, inbound, outbound in before:
            part._inbound_nodes[:] = inbound
            part._outbound_nodes[:] = outbound


def application_layers() -> dict[str, type]:
    """The layers that `keras.applications` defines for its own use; none has a public name."""
    from keras.src.applications import convnext, inception_resnet_v2

    classes = (convnext.LayerScale, convnext.StochasticDepth, inception_resnet_v2.CustomScaleLayer)
    return {cls.__name__: cls for cls in classes}


def own_name(operation: Any) -> str:
    """The name that the user gave, otherwise the class in snake case, without Keras's counter."""
    name: str = to_snake_case(type(operation).__name__) if has_auto_name(operation) else operation.name
    return name


def child_names(layer: Any) -> dict[int, str]:
    """The names of the sublayers of a layer after the attributes that hold them, by their ids."""
    attributes = held_by(layer, _layer_bookkeeping())
    return {id(child): "_".join(path) for path, child in _children(layer, attributes, Names())}


def build_shapes(model: Any) -> Any:
    """The shapes that a model was built with, in the structure that it was called with; or None."""
    config = model.get_build_config() or {}
    found = config.get("input_shape", config.get("shapes_dict"))
    if isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    return found


class Rerun(NamedTuple):
    """A Functional model traced again, with the masks that its layers receive when it runs.

    Attributes:
        outputs: its outputs, in their structure.
        tensors: the new tensor for each one of the model's own, by id.
        aliases: by id of a tensor without a mask, the original tensor.
    """

    outputs: Any
    tensors: dict[int, Any]
    aliases: dict[int, Any]


def deletes_masks(model: Any) -> bool:
    """Whether a call of the model removes masks from tensors, unlike the construction of its graph."""
    return any(type(layer) is keras.layers.MultiHeadAttention for layer in model.layers)


def rerun(model: Any, inputs: Any = None) -> Rerun:
    """Traces a Functional model again as it runs, since attention layers remove masks from their inputs.

    `MultiHeadAttention.call` does so on the tensors themselves, so layers that read them afterwards
    see no mask. Keras draws a layer on copies: the graph of the model keeps the masks.
    """
    given = model.inputs if inputs is None else keras.tree.flatten(inputs)
    tensors = {id(old): new for old, new in zip(model.inputs, given, strict=True)}
    aliases: dict[int, Any] = {}

    def now(value: Any) -> Any:
        return tensors.get(id(value), value) if isinstance(value, keras.KerasTensor) else value

    for node in run_nodes(model):
        args, kwargs = keras.tree.map_structure(now, (node.args, node.kwargs))
        outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        tensors |= {id(old): new for old, new in zip(node.outputs, outputs, strict=True)}
        if type(node.operation) is keras.layers.MultiHeadAttention:
            for tensor in node.inputs:
                current = now(tensor)
                if get_keras_mask(current) is not None:
                    alias = keras.KerasTensor(current.shape, dtype=current.dtype)
                    aliases[id(alias)] = current
                    tensors[id(tensor)] = alias
    return Rerun(keras.tree.map_structure(now, model._outputs_struct), tensors, aliases)


def run_nodes(model: Any) -> list[Node]:
    """The calls of a Functional model in the order in which Keras runs them."""
    by_depth = model._nodes_by_depth  # what `call` goes through
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [_node(node) for node in nodes if node.operation is not None and not node.is_input]
