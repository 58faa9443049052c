"""Groups graphs into classes, and turns the settings that differ into constructor parameters."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from keras_flax_bridge.migrate.ir import Call, Child, Graph, numbers, substituted
from keras_flax_bridge.migrate.python_text import Raw, identifier
from keras_flax_bridge.tree.paths import Path


@dataclass(eq=False)
class ClassDef:
    """A class of the generated source.

    Attributes:
        name: its name.
        instances: the graphs that are instances of it; the source is generated from the first.
        parameters: the constructor parameters in order, each with its value for each instance.
        holes: by child and argument, the parameter that is passed as this argument.
        places: the attribute path of each child; set by the writer.
    """

    name: str
    instances: list[Graph]
    parameters: list[tuple[str, list[Any]]] = field(default_factory=list)
    holes: dict[tuple[Any, ...], str] = field(default_factory=dict)
    places: list[Path] = field(default_factory=list)

    @property
    def graph(self) -> Graph:
        """The graph that the source is generated from."""
        return self.instances[0]

    def values(self, instance: Graph) -> dict[str, Any]:
        """The constructor arguments of an instance."""
        index = next(i for i, graph in enumerate(self.instances) if graph is instance)
        return {name: values[index] for name, values in self.parameters}


class Classes:
    """All classes of the generated source, inner classes first."""

    def __init__(self, root: Graph, name: str, reserved: set[str]):
        groups: dict[Any, list[Graph]] = {}
        for graph in _inner_classes_first(root):
            groups.setdefault(signature(graph), []).append(graph)
        self.taken = set(reserved) | {name}
        self.of: dict[int, ClassDef] = {}
        for graphs in groups.values():
            made = ClassDef(name if root in graphs else self._name(graphs), graphs)
            self._parametrize(made)
            self.of |= {id(graph): made for graph in graphs}
        self.all = list({id(made): made for made in self.of.values()}.values())

    def _name(self, graphs: list[Graph]) -> str:
        words = [re.findall(r"[A-Za-z]+", graph.name) for graph in graphs]
        common = [word for word in words[0] if all(word in other for other in words)] or ["block"]
        text = "".join(word[0].upper() + word[1:] for word in dict.fromkeys(common))
        name, count = text, 1
        while name in self.taken or keyword.iskeyword(name):
            count += 1
            name = f"{text}{count}"
        self.taken.add(name)
        return name

    def _parametrize(self, made: ClassDef) -> None:
        """Turns arguments that differ between instances into parameters; those that vary alike share one."""
        columns = [list(self._arguments(graph)) for graph in made.instances]
        rows = [row for row in zip(*columns, strict=True) if len({repr(cell[2]) for cell in row}) > 1]
        outputs = [repr([cell[2] for cell in row]) for row in rows if row[0][1] == "out_features"]
        names: dict[str, str] = {}
        for row in rows:
            (place, argument, _), values = row[0], [value for _, _, value in row]
            key = repr(values)
            if key not in names:
                hidden = argument == "out_features" and key != outputs[-1]
                taken = [name for name, _ in made.parameters]
                names[key] = identifier("hidden" if hidden else argument, taken.__contains__, "size")
                made.parameters.append((names[key], values))
            made.holes[place] = names[key]

    def _arguments(self, graph: Graph) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
        """Place, parameter and value of every argument in the constructors of the children."""
        for position, child in enumerate(graph.children):
            if isinstance(child.call, Graph):
                for name, value in self.of[id(child.call)].values(child.call).items():
                    yield (position, name), name, value
            else:
                yield from _literals((position,), child.call)


def _literals(place: tuple[Any, ...], call: Call) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    for name, value in call.arguments.items():
        if isinstance(value, Call):
            yield from _literals((*place, name), value)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from _literals((*place, name, i), item)
        elif is_number(value):
            yield (*place, name), name, value


def literals(child: Child) -> Iterator[str]:
    """The numbers in the constructors of a module and its descendants, in order."""
    if isinstance(child.call, Graph):
        for below in child.call.children:
            yield from literals(below)
    else:
        yield from (repr(value) for _, _, value in _literals((), child.call))


def is_number(value: Any) -> bool:
    """Whether an argument is a number or a tuple of numbers, and so can become a parameter of a class."""
    if isinstance(value, (bool, str)) or value is None:
        return False
    return not isinstance(value, tuple) or all(is_number(item) for item in value)


def _inner_classes_first(graph: Graph) -> Iterator[Graph]:
    seen: set[int] = set()

    def walk(one: Graph) -> Iterator[Graph]:
        for child in one.children:
            if isinstance(child.call, Graph) and id(child.call) not in seen:
                yield from walk(child.call)
        seen.add(id(one))
        yield one

    return walk(graph)


def signature(graph: Graph) -> tuple[Any, ...]:
    """A key that is equal for graphs of the same class, which differ only in constructor numbers."""
    order: dict[int, int] = {}
    for value in graph.inputs:
        order[value.number] = len(order)
    children = {id(child): i for i, child in enumerate(graph.children)}
    steps = []
    for step in graph.steps:
        code = substituted(step.code, lambda n: n if n == "m" else str(order[int(n)]))
        for out in step.outs:
            order[out.number] = len(order)
        steps.append((code, len(step.outs), children.get(id(step.child))))
    kinds = tuple(child_signature(child) for child in graph.children)
    result = substituted(graph.result, lambda n: str(order[int(n)]))
    return tuple(steps), kinds, result, _structure(graph.arguments)


def child_signature(child: Child) -> tuple[Any, ...]:
    """A key that is equal for modules which differ only in constructor numbers."""
    made = signature(child.call) if isinstance(child.call, Graph) else call_signature(child.call)
    return made, child.frozen


def call_signature(call: Call) -> tuple[Any, ...]:
    """A key of a constructor call and its arguments, with numbers replaced by their types."""
    parts: list[tuple[Any, ...]] = []
    for name, value in call.arguments.items():
        if isinstance(value, Call):
            parts.append((name, call_signature(value)))
        elif isinstance(value, list):
            parts.append((name, *map(call_signature, value)))
        elif is_number(value):
            parts.append((name, type(value).__name__))
        else:
            parts.append((name, str(value) if isinstance(value, Raw) else repr(value)))
    return call.function, tuple(parts)


def _structure(arguments: Any) -> str:
    if isinstance(arguments, dict):
        return repr({key: _structure(value) for key, value in arguments.items()})
    if isinstance(arguments, (list, tuple)):
        return f"{type(arguments).__name__}{[_structure(a) for a in arguments]}"
    return "*"


def read_counts(graph: Graph) -> dict[int, int]:
    """The number of reads of each value."""
    counts: dict[int, int] = {}
    for code in [*(step.code for step in graph.steps), graph.result]:
        for number in numbers(code):
            counts[number] = counts.get(number, 0) + 1
    return counts
