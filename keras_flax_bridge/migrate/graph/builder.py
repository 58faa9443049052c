"""Converts a Keras model to the intermediate representation; reports all layers without a rule at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import keras_flax_bridge.migrate.rules.rule as rules
from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedLayerError, listing
from keras_flax_bridge.keras_internals import FROZEN, PARAM, SEED, Node
from keras_flax_bridge.migrate.graph.tracing import trace_call
from keras_flax_bridge.migrate.ir import Call, Child, Graph, Step, Value, Weight
from keras_flax_bridge.migrate.python_text import Raw, Unwritable, dtype_name, keyword_name, literal
from keras_flax_bridge.migrate.rules.operations import operation_code
from keras_flax_bridge.migrate.rules.site import Refusal, Site
from keras_flax_bridge.tree.paths import Path, join_path, split_path

LITERAL_SIZE = 16  # elements; a larger constant becomes a frozen variable of the module


class Problems:
    """Layers and operations that can't be converted, collected for one error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, operation: Any, reason: str) -> None:
        """Records a layer or operation; duplicates are ignored."""
        line = f"{type(operation).__name__} {operation.name!r}: {reason}"
        if line not in self.lines:
            self.lines.append(line)

    def raise_any(self, model: Any) -> None:
        """Raises UnsupportedLayerError that lists all recorded problems."""
        if not self.lines:
            return
        raise UnsupportedLayerError(
            f"model {model.name!r}",
            got=listing(f"{len(self.lines)} layers or operations without a native counterpart", self.lines),
            expected="a rule for each",
            fix="Register a rule for each class with kfb.migrate.register_rule, keep them as Keras "
            "layers with to_nnx(model, fallback='bridge'), or wrap the model with kfb.ToNNX(model).",
        )


class Context:
    """State shared by the graphs of one model: variables, values, constants, and problems."""

    def __init__(self, model: Any, fallback: str = "error"):
        entries = [entry for collection in keras_internals.collect_tracked(model) for entry in collection]
        self.entries = {id(entry.variable): entry for entry in entries}
        self.problems = Problems()
        self.fallback = fallback
        self.values: dict[int, Value] = {}
        self.constants: dict[Path, np.ndarray] = {}
        self.islands: dict[str, Any] = {}
        self.mapped: set[Path] = set()
        self.graphs: dict[int, Graph] = {}
        self.kept: list[Any] = []  # references to tensors that are looked up by id

    def value(self, shape: Any, dtype: Any, hint: str) -> Value:
        """Creates a value with the next number."""
        number = len(self.values)
        self.values[number] = Value(number, tuple(shape), str(dtype), hint)
        return self.values[number]


class GraphBuilder:
    """Builds the graph of one Functional model; rules see it as their `Builder`."""

    def __init__(self, context: Context, model: Any, name: str):
        self.context = context
        self.graph = Graph(name)
        self.model = model
        self.names = keras_internals.layer_names(model)
        self.texts: dict[int, str] = {}
        self.children: dict[Any, Child] = {}
        self.done: set[int] = set()
        self.tensors: dict[int, Any] = {}  # by id of a tensor of the model: the tensor that replaces it
        self.aliases: dict[int, Any] = {}  # by id of a tensor without a mask: the original tensor
        self.current: Child | None = None

    # interface for rules
    def text(self, tensor: Any) -> str:
        """The expression of a tensor; adds the steps that compute it first."""
        tensor = self.aliases.get(id(tensor), tensor)
        if id(tensor) not in self.texts:
            node = keras_internals.producer(tensor)
            if node is None:
                raise Refusal("a tensor that does not depend on the inputs of the model")
            for call in self._missing(node):
                self.emit(call)
        return self.texts[id(tensor)]

    def name(self, tensor: Any, code: str) -> None:
        """Sets the expression of a tensor."""
        self.context.kept.append(tensor)
        self.texts[id(tensor)] = code

    def let(self, code: str, hint: str, shape: Any, dtype: str) -> str:
        """Assigns an expression to a new value, unless it is a value already."""
        if code.startswith("«") and code.find("»") == len(code) - 1:
            return code
        value = self.context.value(shape, dtype, hint)
        self.graph.steps.append(Step(code, (value,), self.current if "«m»" in code else None))
        return str(value)

    def constant(self, array: np.ndarray) -> str:
        """The expression of a constant array: a literal if it is small, otherwise a frozen variable."""
        if array.ndim == 0:
            return f"{dtype_name(array.dtype)}({literal(_shortest(array))})"
        if array.size <= LITERAL_SIZE:
            return f"jnp.array({literal(_shortest(array))}, {dtype_name(array.dtype)})"
        path = ("constants", str(len(self.context.constants)))
        self.context.constants[path] = array
        weight = Weight(path, ((),), kind="constant")
        return self._held("constant", array.shape, str(array.dtype), "Frozen", weight)

    def variable(self, variable: Any) -> str:
        """The expression of a Keras variable that an operation reads directly."""
        entry = self.context.entries[id(variable)]
        key = id(variable)
        if key not in self.children:
            kind = "nnx.Param" if entry.kind == PARAM else "Frozen"
            spec = keras_internals.variable_spec(variable)
            weight = Weight(entry.path, ((),), kind=entry.kind)
            self.children[key] = self._holder(entry.path[-1], spec.shape, str(spec.dtype), kind, weight)
            self.context.mapped.add(entry.path)
        return self._read(self.children[key])

    def _held(self, name: str, shape: Any, dtype: str, kind: str, weight: Weight) -> str:
        return self._read(self._holder(name, shape, dtype, kind, weight))

    def _holder(self, name: str, shape: Any, dtype: str, kind: str, weight: Weight) -> Child:
        zeros = Call("jnp.zeros", {"shape": tuple(shape), "dtype": Raw(dtype_name(dtype))}, rngs=False)
        return Child(name, Call(kind, {"value": zeros}, rngs=False), (weight,), rule="a variable")

    def _read(self, child: Child) -> str:
        value = self.context.value((), "float32", child.name)
        self.graph.steps.append(Step("«m»[...]", (value,), child))
        return str(value)

    def _name(self, operation: Any) -> str:
        return self.names.get(id(operation)) or keras_internals.own_name(operation)

    # calls
    def _missing(self, node: Node) -> list[Node]:
        """A call and the calls that it needs, in topological order; iterative, since graphs may be deep."""
        found, seen, stack = [], {node.key}, [(node, iter(node.inputs))]
        while stack:
            call, inputs = stack[-1]
            tensors = (self.aliases.get(id(tensor), tensor) for tensor in inputs)
            needed = (keras_internals.producer(tensor) for tensor in tensors if id(tensor) not in self.texts)
            calls = (n for n in needed if n and n.key not in seen and n.key not in self.done)
            earlier = next(calls, None)
            if earlier is None:
                found.append(call)
                stack.pop()
            else:
                seen.add(earlier.key)
                stack.append((earlier, iter(earlier.inputs)))
        return found

    def emit(self, node: Node) -> None:
        """Adds the steps of a call, after those of its inputs."""
        if node.key in self.done:
            return
        self.done.add(node.key)
        for tensor in node.inputs:
            self.text(tensor)
        operation = node.operation
        codes: str | None
        try:
            codes = self._codes(node)
        except (Refusal, Unwritable) as refusal:  # Unwritable: such as a string for a number
            codes = self._fallback(node, str(refusal))
        if codes is None:
            return
        before, self.current = self.current, self.children.get(id(operation))
        hint = self._name(operation)
        outs = tuple(self.context.value(t.shape, t.dtype, hint) for t in node.outputs)
        self.graph.steps.append(Step(codes, outs, self.current if "«m»" in codes else None))
        self.current = before
        for tensor, value in zip(node.outputs, outs, strict=True):
            self.texts[id(tensor)] = str(value)

    def _codes(self, node: Node) -> Any:
        operation = node.operation
        if not isinstance(operation, keras.layers.Layer):
            return operation_code(Site(self, node))
        rule = rules.rule_for(operation)
        if rule is not None:
            return self._by_rule(rule, node)
        inner = keras_internals.functional(operation)
        if inner is not None:
            return self._nested(operation, inner, node)
        return self._inlined(node)

    def _by_rule(self, rule: rules.Rule, node: Node) -> Any:
        site = Site(self, node)
        layer = node.operation
        child = self.children.get(id(layer))
        fresh = child is None
        if fresh:
            child = Child(self._name(layer), Call("", {}), rule=type(layer).__name__)
        before, self.current = self.current, child
        try:
            call, code = rule.applied(site)
        finally:
            self.current = before
        if call is not None and fresh:
            assert child is not None
            child.call = call
            child.weights = tuple(self._weights(rule, site))
            child.frozen = _frozen(child.weights)
        if call is not None:
            self.children[id(layer)] = child  # type: ignore[assignment]
        return code

    def _weights(self, rule: rules.Rule, site: Site) -> Iterator[Weight]:
        """The weights of a layer, with their paths in the module.

        Raises:
            Refusal: if the rule does not map one of the variables.
        """
        targets = rule.targets(site)
        for collection in keras_internals.collect_tracked(site.layer):
            for entry in collection:
                if entry.kind == SEED:
                    continue
                key = join_path(entry.path)
                if key not in targets:
                    raise Refusal(f"its rule does not map the variable {key!r}")
                spec = keras_internals.variable_spec(entry.variable)
                paths, transforms = rules.target(targets[key], site, spec.shape)
                own = self.context.entries[id(entry.variable)]
                self.context.mapped.add(own.path)
                yield Weight(own.path, tuple(map(split_path, paths)), tuple(transforms), own.kind)

    def _nested(self, model: Any, inner: Any, node: Node) -> str | None:
        """The call of a nested model, which becomes a separate class."""
        if any(keras_internals.mask_of(tensor) is not None for tensor in node.inputs):
            return self._inlined(
                node
            )  # its layers receive a mask that is not in the graph of the nested model
        if id(model) not in self.children:
            name = self._name(model)
            graph = build_graph(self.context, inner, name)
            self.children[id(model)] = Child(name, graph, rule=type(model).__name__)
        argument = node.args[0] if node.args else next(iter(node.kwargs.values()))
        return f"«m»({self.packed(_bare(argument))})"

    def _inlined(self, node: Node) -> str | None:
        """Inlines the graph of the `call` of a layer without a rule, if it can be traced."""
        outputs = trace_call(self, node)
        for tensor, output in zip(node.outputs, outputs, strict=True):
            self.texts[id(tensor)] = self.text(output)
        return None

    def _fallback(self, node: Node, reason: str) -> str | None:
        """Replaces a call that can't be converted by a wrapped Keras layer, or records a problem."""
        operation = node.operation
        if self.context.fallback == "bridge" and isinstance(operation, keras.layers.Layer):
            return self._island(node)
        self.context.problems.add(operation, reason)
        for tensor in node.outputs:
            self.texts[id(tensor)] = str(self.context.value(tensor.shape, tensor.dtype, "missing"))
        return None

    def _island(self, node: Node) -> str:
        layer = node.operation
        if id(layer) not in self.children:
            name = self._name(layer)
            number = len(self.context.islands)
            self.context.islands[str(number)] = layer
            weights = tuple(self._island_weights(layer))
            call = Call(f"islands[{number}]", {}, rngs=False)
            self.children[id(layer)] = Child(name, call, weights, rule="ToNNX")
        arguments = [self.packed(a) for a in node.args]
        named = {keyword_name(k): v for k, v in node.kwargs.items() if k != "training"}
        arguments += [f"{k}={self.packed(v)}" for k, v in named.items()]
        return f"«m»({', '.join(arguments)})"

    def _island_weights(self, layer: Any) -> Iterator[Weight]:
        for collection in keras_internals.collect_tracked(layer):
            for entry in collection:
                own = self.context.entries[id(entry.variable)]
                self.context.mapped.add(own.path)
                yield Weight(own.path, (entry.path,), (), own.kind)

    # the complete graph
    def packed(self, value: Any) -> str:
        """The expression of a structure of tensors."""
        if isinstance(value, dict):
            return "{" + ", ".join(f"{literal(str(k))}: {self.packed(v)}" for k, v in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            items = ", ".join(map(self.packed, value))
            tail = "," if isinstance(value, tuple) and len(value) == 1 else ""
            return f"[{items}]" if isinstance(value, list) else f"({items}{tail})"
        return self.text(value) if isinstance(value, keras.KerasTensor) else literal(value)

    def build(self) -> Graph:
        """Builds the graph, starting from its outputs."""
        inputs, _ = keras_internals.structure(self.model)
        self.graph.arguments = keras.tree.map_structure(self._input, _bare(inputs))
        outputs = self._outputs_with_masks()
        for output in keras.tree.flatten(outputs):
            try:
                self.text(output)
            except Refusal as refusal:
                self.context.problems.add(self.model, str(refusal))
                self.texts[id(output)] = "None"
        self.graph.result = self.packed(_bare(outputs))
        return self.graph

    def layer_outputs(self) -> list[tuple[str, Any]]:
        """Names and outputs of the layers of the graph, in the execution order of Keras."""
        return [
            (self._name(node.operation), tensor)
            for node in keras_internals.run_nodes(self.model)
            if isinstance(node.operation, keras.layers.Layer)
            for tensor in node.outputs
        ]

    def replace_outputs(self, tensors: list[Any]) -> None:
        """Replaces the outputs of the graph by other tensors of the model."""
        self.graph.result = self.packed([self.tensors.get(id(tensor), tensor) for tensor in tensors])

    def _outputs_with_masks(self) -> Any:
        """The outputs of the model, traced with the masks that its layers receive when it runs."""
        outputs = keras_internals.structure(self.model)[1]
        if not keras_internals.deletes_masks(self.model):
            return outputs
        rerun = keras_internals.rerun(self.model)
        self.tensors = rerun.tensors
        self.aliases |= rerun.aliases
        self.context.kept.append(rerun)
        return rerun.outputs

    def _input(self, tensor: Any) -> Value:
        auto = re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", tensor.name)  # a generated name
        value = self.context.value(tensor.shape, tensor.dtype, "x" if auto else tensor.name)
        self.texts[id(tensor)] = str(value)
        self.graph.inputs.append(value)
        return value


def build_root(
    context: Context, model: Any, name: str, layer_outputs: bool, names: dict[int, str]
) -> tuple[Graph, list[tuple[str, Any]]]:
    """The graph of a model; with `layer_outputs`, it returns the outputs of all layers instead.

    Returns:
        The graph, and the names and output tensors of the layers; empty without `layer_outputs`.
    """
    builder = GraphBuilder(context, model, name)
    builder.names |= names
    builder.build()
    named = builder.layer_outputs() if layer_outputs else []
    if named:
        builder.replace_outputs([tensor for _, tensor in named])
    return builder.graph, named


def build_graph(context: Context, model: Any, name: str) -> Graph:
    """The graph of a Functional model; built once for a model that is used several times."""
    if id(model) not in context.graphs:
        builder = GraphBuilder(context, model, name)
        context.graphs[id(model)] = builder.graph
        builder.build()
    return context.graphs[id(model)]


def _bare(structure: Any) -> Any:
    """Unwraps a list or tuple of one tensor, as Keras does."""
    single = isinstance(structure, (list, tuple)) and len(structure) == 1
    return structure[0] if single else structure


def _shortest(array: np.ndarray) -> Any:
    """An array as nested lists of numbers, with the fewest digits that preserve the values in their dtype."""
    if array.ndim == 0:
        return float(str(array)) if array.dtype.kind == "f" else array.item()
    return [_shortest(item) for item in array]


def _frozen(weights: tuple[Weight, ...]) -> tuple[Path, ...]:
    """Paths of the frozen parameters; `((),)` if all of them are frozen."""
    held = [w for w in weights if w.kind in (PARAM, FROZEN)]
    frozen = [path for w in held if w.kind == FROZEN for path in w.paths]
    whole = frozen and all(w.kind == FROZEN for w in held)
    return ((),) if whole else tuple(frozen)
