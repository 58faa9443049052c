"""Converts a Keras model to the intermediate form by the rules; lists everything without a rule at once."""

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
from keras_flax_bridge.migrate.graph.draw import drawn
from keras_flax_bridge.migrate.ir import Call, Child, Graph, Step, Value, Weight
from keras_flax_bridge.migrate.python_text import Raw, Unwritable, dtype_name, keyword_name, literal
from keras_flax_bridge.migrate.rules.operations import operation_code
from keras_flax_bridge.migrate.rules.site import Refusal, Site
from keras_flax_bridge.tree.paths import Path, join_path, split_path

LITERAL_SIZE = 16  # larger constants become a variable of the module


class Problems:
    """Layers and operations that can't be converted, collected for one error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, operation: Any, reason: str) -> None:
        """Notes one, once."""
        line = f"{type(operation).__name__} {operation.name!r}: {reason}"
        if line not in self.lines:
            self.lines.append(line)

    def raise_any(self, model: Any) -> None:
        """Raises UnsupportedLayerError with everything that was noted."""
        if not self.lines:
            return
        raise UnsupportedLayerError(
            f"model {model.name!r}",
            got=listing(f"{len(self.lines)} layers or operations without a native counterpart", self.lines),
            expected="a rule for each",
            fix="Register a rule for each class with kfb.migrate.register_rule, keep them as Keras "
            "layers with to_nnx(model, fallback='bridge'), or bridge the model with kfb.ToNNX.",
        )


class Drawing:
    """What the graphs of one model share: its variables, problems, and the count of its values."""

    def __init__(self, model: Any, fallback: str = "error"):
        entries = [entry for collection in keras_internals.collect_layer(model) for entry in collection]
        self.entries = {id(entry.variable): entry for entry in entries}
        self.problems = Problems()
        self.fallback = fallback
        self.values: dict[int, Value] = {}
        self.constants: dict[Path, np.ndarray] = {}
        self.islands: dict[str, Any] = {}
        self.mapped: set[Path] = set()
        self.graphs: dict[int, Graph] = {}
        self.kept: list[Any] = []  # traced tensors: kept alive, since they are looked up by id

    def value(self, shape: Any, dtype: Any, hint: str) -> Value:
        """A value with the next number."""
        number = len(self.values)
        self.values[number] = Value(number, tuple(shape), str(dtype), hint)
        return self.values[number]


class GraphBuilder:
    """Builds the graph of one Functional model; rules see it as their `Builder`."""

    def __init__(self, drawing: Drawing, model: Any, name: str):
        self.drawing = drawing
        self.graph = Graph(name)
        self.model = model
        self.names = keras_internals.layer_names(model)
        self.texts: dict[int, str] = {}
        self.children: dict[Any, Child] = {}
        self.done: set[int] = set()
        self.tensors: dict[int, Any] = {}  # the tensors that replace the model's own
        self.aliases: dict[int, Any] = {}  # tensors that stand for others without their mask
        self.current: Child | None = None

    # the interface for rules
    def text(self, tensor: Any) -> str:
        """The expression of a tensor, after the steps that compute it."""
        tensor = self.aliases.get(id(tensor), tensor)
        if id(tensor) not in self.texts:
            node = keras_internals.producer(tensor)
            if node is None:
                raise Refusal("a tensor that does not come from the model's inputs")
            for call in self._missing(node):
                self.emit(call)
        return self.texts[id(tensor)]

    def name(self, tensor: Any, code: str) -> None:
        """Sets the expression of a tensor."""
        self.drawing.kept.append(tensor)
        self.texts[id(tensor)] = code

    def let(self, code: str, hint: str, shape: Any, dtype: str) -> str:
        """A value of its own for an expression, unless it is one."""
        if code.startswith("«") and code.find("»") == len(code) - 1:
            return code
        value = self.drawing.value(shape, dtype, hint)
        self.graph.steps.append(Step(code, (value,), self.current if "«m»" in code else None))
        return str(value)

    def constant(self, array: np.ndarray) -> str:
        """An array of the graph: a literal if it is small, otherwise a frozen variable."""
        if array.ndim == 0:
            return f"{dtype_name(array.dtype)}({literal(_shortest(array))})"
        if array.size <= LITERAL_SIZE:
            return f"jnp.array({literal(_shortest(array))}, {dtype_name(array.dtype)})"
        path = ("constants", str(len(self.drawing.constants)))
        self.drawing.constants[path] = array
        weight = Weight(path, ((),), kind="constant")
        return self._held("constant", array.shape, str(array.dtype), "Frozen", weight)

    def variable(self, variable: Any) -> str:
        """The module's variable for a Keras variable that an operation reads."""
        entry = self.drawing.entries[id(variable)]
        key = id(variable)
        if key not in self.children:
            kind = "nnx.Param" if entry.kind == PARAM else "Frozen"
            spec = keras_internals.variable_spec(variable)
            weight = Weight(entry.path, ((),), kind=entry.kind)
            self.children[key] = self._holder(entry.path[-1], spec.shape, str(spec.dtype), kind, weight)
            self.drawing.mapped.add(entry.path)
        return self._read(self.children[key])

    def _held(self, name: str, shape: Any, dtype: str, kind: str, weight: Weight) -> str:
        return self._read(self._holder(name, shape, dtype, kind, weight))

    def _holder(self, name: str, shape: Any, dtype: str, kind: str, weight: Weight) -> Child:
        zeros = Call("jnp.zeros", {"shape": tuple(shape), "dtype": Raw(dtype_name(dtype))}, rngs=False)
        return Child(name, Call(kind, {"value": zeros}, rngs=False), (weight,), rule="a variable")

    def _read(self, child: Child) -> str:
        value = self.drawing.value((), "float32", child.name)
        self.graph.steps.append(Step("«m»[...]", (value,), child))
        return str(value)

    def _name(self, operation: Any) -> str:
        return self.names.get(id(operation)) or keras_internals.own_name(operation)

    # calls
    def _missing(self, node: Node) -> list[Node]:
        """A call, after the calls that it depends on; without recursion, since graphs may be deep."""
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
        except (Refusal, Unwritable) as refusal:  # settings that can't be written, such as text for a number
            codes = self._fallback(node, str(refusal))
        if codes is None:
            return
        before, self.current = self.current, self.children.get(id(operation))
        hint = self._name(operation)
        outs = tuple(self.drawing.value(t.shape, t.dtype, hint) for t in node.outputs)
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
        return self._drawn(node)

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
        """The paths of a layer's variables in the module; a variable without one is an error."""
        targets = rule.targets(site)
        for collection in keras_internals.collect_layer(site.layer):
            for entry in collection:
                if entry.kind == SEED:
                    continue
                key = join_path(entry.path)
                if key not in targets:
                    raise Refusal(f"its variable {key!r} has no place in the rule")
                spec = keras_internals.variable_spec(entry.variable)
                paths, transforms = rules.target(targets[key], site, spec.shape)
                own = self.drawing.entries[id(entry.variable)]
                self.drawing.mapped.add(own.path)
                yield Weight(own.path, tuple(map(split_path, paths)), tuple(transforms), own.kind)

    def _nested(self, model: Any, inner: Any, node: Node) -> str | None:
        """A nested model, which becomes a class of its own."""
        if any(keras_internals.mask_of(tensor) is not None for tensor in node.inputs):
            return self._drawn(node)  # its layers see a mask that its own graph does not know
        if id(model) not in self.children:
            name = self._name(model)
            graph = build_graph(self.drawing, inner, name)
            self.children[id(model)] = Child(name, graph, rule=type(model).__name__)
        argument = node.args[0] if node.args else next(iter(node.kwargs.values()))
        return f"«m»({self.packed(_bare(argument))})"

    def _drawn(self, node: Node) -> str | None:
        """A layer without a rule: the graph of its `call`, if it can be traced."""
        outputs = drawn(self, node)
        for tensor, output in zip(node.outputs, outputs, strict=True):
            self.texts[id(tensor)] = self.text(output)
        return None

    def _fallback(self, node: Node, reason: str) -> str | None:
        """A replacement for a call that can't be converted: a wrapped Keras layer, or a placeholder."""
        operation = node.operation
        if self.drawing.fallback == "bridge" and isinstance(operation, keras.layers.Layer):
            return self._island(node)
        self.drawing.problems.add(operation, reason)
        for tensor in node.outputs:
            self.texts[id(tensor)] = str(self.drawing.value(tensor.shape, tensor.dtype, "missing"))
        return None

    def _island(self, node: Node) -> str:
        layer = node.operation
        if id(layer) not in self.children:
            name = self._name(layer)
            number = len(self.drawing.islands)
            self.drawing.islands[str(number)] = layer
            weights = tuple(self._island_weights(layer))
            call = Call(f"islands[{number}]", {}, rngs=False)
            self.children[id(layer)] = Child(name, call, weights, rule="ToNNX")
        arguments = [self.packed(a) for a in node.args]
        named = {keyword_name(k): v for k, v in node.kwargs.items() if k != "training"}
        arguments += [f"{k}={self.packed(v)}" for k, v in named.items()]
        return f"«m»({', '.join(arguments)})"

    def _island_weights(self, layer: Any) -> Iterator[Weight]:
        for collection in keras_internals.collect_layer(layer):
            for entry in collection:
                own = self.drawing.entries[id(entry.variable)]
                self.drawing.mapped.add(own.path)
                yield Weight(own.path, (entry.path,), (), own.kind)

    # the whole
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
        """The complete graph, from its outputs back."""
        inputs, _ = keras_internals.structure(self.model)
        self.graph.arguments = keras.tree.map_structure(self._input, _bare(inputs))
        outputs = self._drawn_as_run()
        for output in keras.tree.flatten(outputs):
            try:
                self.text(output)
            except Refusal as refusal:
                self.drawing.problems.add(self.model, str(refusal))
                self.texts[id(output)] = "None"
        self.graph.result = self.packed(_bare(outputs))
        return self.graph

    def watched(self) -> list[tuple[str, Any]]:
        """The output of every layer of the graph by name, in Keras's order."""
        return [
            (self._name(node.operation), tensor)
            for node in keras_internals.run_nodes(self.model)
            if isinstance(node.operation, keras.layers.Layer)
            for tensor in node.outputs
        ]

    def watch(self, tensors: list[Any]) -> None:
        """Returns tensors of the model in place of its outputs."""
        self.graph.result = self.packed([self.tensors.get(id(tensor), tensor) for tensor in tensors])

    def _drawn_as_run(self) -> Any:
        """The outputs, in a graph with the masks that layers see when the model runs."""
        outputs = keras_internals.structure(self.model)[1]
        if not keras_internals.deletes_masks(self.model):
            return outputs
        rerun = keras_internals.rerun(self.model)
        self.tensors = rerun.tensors
        self.aliases |= rerun.aliases
        self.drawing.kept.append(rerun)
        return rerun.outputs

    def _input(self, tensor: Any) -> Value:
        auto = re.fullmatch(r"(keras_tensor|input_layer)(_\d+)?", tensor.name)  # counted in the process
        value = self.drawing.value(tensor.shape, tensor.dtype, "x" if auto else tensor.name)
        self.texts[id(tensor)] = str(value)
        self.graph.inputs.append(value)
        return value


def build_root(
    drawing: Drawing, model: Any, name: str, watch: bool, names: dict[int, str]
) -> tuple[Graph, list[tuple[str, Any]]]:
    """The graph of a model; with `watch` one that returns the output of every layer.

    Returns:
        The graph, and the names and tensors of what it returns in place of the outputs.
    """
    builder = GraphBuilder(drawing, model, name)
    builder.names |= names
    builder.build()
    watched = builder.watched() if watch else []
    if watched:
        builder.watch([tensor for _, tensor in watched])
    return builder.graph, watched


def build_graph(drawing: Drawing, model: Any, name: str) -> Graph:
    """The graph of a Functional model; one that is used in two places is built once."""
    if id(model) not in drawing.graphs:
        builder = GraphBuilder(drawing, model, name)
        drawing.graphs[id(model)] = builder.graph
        builder.build()
    return drawing.graphs[id(model)]


def _bare(structure: Any) -> Any:
    """Unwraps a list of one tensor, as Keras does."""
    single = isinstance(structure, (list, tuple)) and len(structure) == 1
    return structure[0] if single else structure


def _shortest(array: np.ndarray) -> Any:
    """Nested lists of numbers with no more digits than their dtype needs."""
    if array.ndim == 0:
        return float(str(array)) if array.dtype.kind == "f" else array.item()
    return [_shortest(item) for item in array]


def _frozen(weights: tuple[Weight, ...]) -> tuple[Path, ...]:
    """Paths of the frozen parameters; `((),)` if all of them are frozen."""
    held = [w for w in weights if w.kind in (PARAM, FROZEN)]
    frozen = [path for w in held if w.kind == FROZEN for path in w.paths]
    whole = frozen and all(w.kind == FROZEN for w in held)
    return ((),) if whole else tuple(frozen)
