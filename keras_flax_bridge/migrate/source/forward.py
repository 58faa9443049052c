"""Generates the attributes of a class and the lines of its forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flax import nnx

from keras_flax_bridge.migrate.ir import Child, Graph, Step, Value, numbers, substituted
from keras_flax_bridge.migrate.python_text import fits, identifier, literal, one_line, statement
from keras_flax_bridge.migrate.source.classes import ClassDef, Classes, read_counts
from keras_flax_bridge.migrate.source.locals import Locals
from keras_flax_bridge.tree.paths import Path

import ast  # isort: skip

RESERVED_NAMES = {"jax", "jnp", "nnx", "self", "rngs", "islands", "range", "float", "inputs"}
INDENTED = 8
DEPTH = 4  # nested calls on one line


def _is_taken(name: str) -> bool:
    """Whether a name is reserved for attributes and values."""
    return hasattr(nnx.Module, name) or name in RESERVED_NAMES


class Forward:
    """The attributes and the forward pass of one class."""

    def __init__(self, made: ClassDef, classes: Classes):
        self.made = made
        self.graph = made.graph
        self.classes = classes
        self.steps = _live_steps(self.graph)
        self.children = self.graph.children
        self.position = {id(child): i for i, child in enumerate(self.children)}
        self.runs = self._runs()
        self.places = self._places()
        self.arguments: list[str] = []
        self.taken: set[str] = RESERVED_NAMES | classes.taken
        self.inputs, self.unpacking = self._inputs()

    # attributes
    def _runs(self) -> list[list[int]]:
        """Runs of steps that each call a block on the output of the previous step."""
        counts = read_counts(self.graph)
        calls = [sum(step.child is child for step in self.graph.steps) for child in self.children]
        runs: list[list[int]] = []
        for i, step in enumerate(self.steps):
            called = _block_call(step)
            if called is None or calls[self.position[id(step.child)]] != 1:
                continue
            if runs and runs[-1][-1] == i - 1:
                before = self.steps[i - 1]
                other = _block_call(before)
                chained = called[0] == before.outs[0].number and counts[called[0]] == 1
                if other and chained and called[1:] == other[1:]:
                    runs[-1].append(i)
                    continue
            runs.append([i])
        return [run for run in runs if len(run) > 1]

    def _places(self) -> list[Path]:
        taken: set[str] = set()
        places: dict[int, Path] = {}
        in_run = {id(self.steps[i].child): run for run in self.runs for i in run}
        for position, child in enumerate(self.children):
            run = in_run.get(id(child))
            if run is None:
                places[position] = (self._attribute(self._name(position), taken),)
            elif position not in places:
                name = self._attribute("blocks", taken)
                for index, i in enumerate(run):
                    places[self.position[id(self.steps[i].child)]] = (name, str(index))
        return [places[position] for position in range(len(self.children))]

    def _name(self, position: int) -> str:
        """The name of a child: the words that its names in all instances share."""
        names = [graph.children[position].name for graph in self.made.instances]
        return common_name(names)

    def _attribute(self, name: str, taken: set[str]) -> str:
        found = identifier(name, lambda n: n in taken or _is_taken(n), "layer")
        taken.add(found)
        return found

    def attributes(self) -> Iterator[tuple[str, list[int]]]:
        """Each attribute with the positions of its children."""
        grouped: dict[str, list[int]] = {}
        for position, place in enumerate(self.places):
            grouped.setdefault(place[0], []).append(position)
        yield from grouped.items()

    # arguments
    def _inputs(self) -> tuple[dict[int, str], list[tuple[str, str]]]:
        structure = self.graph.arguments
        if isinstance(structure, Value):
            return self._named([structure], "x"), []
        if structure is None:
            return self._named(self.graph.inputs, "x"), []
        self.arguments.append("inputs")
        names: dict[int, str] = {}
        lines: list[tuple[str, str]] = []
        self._unpack(structure, "inputs", names, lines)
        return names, lines

    def _named(self, values: list[Value], first: str) -> dict[int, str]:
        names = {}
        for i, value in enumerate(values):
            hint = first if i == 0 else value.hint
            names[value.number] = self._free_name(hint)
            self.arguments.append(names[value.number])
        return names

    def _free_name(self, hint: str) -> str:
        name = identifier(hint, self.taken.__contains__, "x")
        self.taken.add(name)
        return name

    def _unpack(self, structure: Any, text: str, names: dict[int, str], lines: list[Any]) -> None:
        items = (
            [(f"{text}[{literal(key)}]", value) for key, value in structure.items()]
            if isinstance(structure, dict)
            else [(f"{text}[{i}]", value) for i, value in enumerate(structure)]
        )
        flat = all(isinstance(value, Value) for _, value in items)
        for _, value in items:
            if isinstance(value, Value):
                names[value.number] = self._free_name(value.hint)
        if flat and not isinstance(structure, dict):
            listed = ", ".join(names[value.number] for _, value in items)
            lines.append((listed + ("," if len(items) == 1 else ""), text))
            return
        for place, value in items:
            if isinstance(value, Value):
                lines.append((names[value.number], place))
            else:
                self._unpack(value, place, names, lines)

    # lines
    def lines(self) -> list[str]:
        """The body of ``__call__``."""
        steps, loops = self._with_loops()
        merged = self._inlined(steps, loops)
        names = Locals(self.graph, merged, self.inputs, self.taken | RESERVED_NAMES).names
        lines = [line for target, text in self.unpacking for line in self._line(target, text)]
        for step in merged:
            is_last = step is merged[-1] and [f"«{out.number}»" for out in step.outs] == [self.graph.result]
            lines += self._step(step, names, loops, is_last)
            if is_last and id(step) not in loops:
                return lines
        result = substituted(self.graph.result, lambda n: names[int(n)])
        return [*lines, *self._line("return", result)]

    def _line(self, target: str, text: str) -> list[str]:
        head = "return " if target == "return" else f"{target} = "
        return [line[INDENTED:] for line in statement(head, text, " " * INDENTED)]

    def _step(self, step: Step, names: dict[int, str], loops: dict[int, str], is_last: bool) -> list[str]:
        target = ", ".join(names[out.number] for out in step.outs)
        if id(step) in loops:
            code = substituted(step.code, lambda n: "block" if n == "m" else names[int(n)])
            first = names[numbers(step.code)[0]]
            start = [] if first == target else [f"{target} = {first}"]
            code = code.replace(f"block({first}", f"block({target}", 1)
            head = f"for block in self.{loops[id(step)]}:"
            body = self._line(target, code)
            return [*start, head, *(f"    {line}" for line in body)]
        code = substituted(step.code, lambda n: self._module(step, n, names))
        return self._line("return" if is_last else target, code)

    def _module(self, step: Step, place: str, names: dict[int, str]) -> str:
        if place != "m":
            return names[int(place)]
        return self._attribute_of(step.child)

    def _attribute_of(self, child: Child | None) -> str:
        assert child is not None
        attribute, *rest = self.places[self.position[id(child)]]
        return f"self.{attribute}" + "".join(f"[{index}]" for index in rest)

    def _with_loops(self) -> tuple[list[Step], dict[int, str]]:
        """The steps with each run of blocks replaced by a loop, and the attributes of the loops."""
        loops: dict[int, str] = {}
        skipped: dict[int, Step] = {}
        for run in self.runs:
            first, last = self.steps[run[0]], self.steps[run[-1]]
            loop = Step(first.code, last.outs, first.child)
            loops[id(loop)] = self.places[self.position[id(first.child)]][0]
            skipped |= dict.fromkeys(run, loop)
        steps = [skipped.get(i, step) for i, step in enumerate(self.steps)]
        return list({id(step): step for step in steps}.values()), loops

    def _inlined(self, steps: list[Step], loops: dict[int, str]) -> list[Step]:
        """Inlines values that are only read_counts by the next step, if the line stays readable."""
        counts = read_counts(self.graph)
        done: list[Step] = []
        for step in steps:
            step = self._with_attribute(step) if id(step) not in loops else step
            while done and id(step) not in loops and id(done[-1]) not in loops:
                before = done[-1]
                number = before.outs[0].number
                once = len(before.outs) == 1 and counts.get(number, 0) == 1 and numbers(step.code)
                if not once or number not in numbers(step.code):
                    break
                code = step.code.replace(f"«{number}»", f"({before.code})")
                if not self._readable(code, step):
                    break
                done.pop()
                step = Step(code, step.outs, None)
            done.append(step)
        return done

    def _with_attribute(self, step: Step) -> Step:
        """The step with the placeholder replaced by the attribute of its module."""
        if step.child is None or "«m»" not in step.code:
            return step
        return Step(step.code.replace("«m»", self._attribute_of(step.child)), step.outs, None)

    def _readable(self, code: str, step: Step) -> bool:
        tree = ast.parse(substituted(code, lambda n: "x"), mode="eval").body
        line = " " * INDENTED + "x = " + one_line(tree)
        return fits(line) and _depth(tree) <= DEPTH


def _depth(node: ast.AST) -> int:
    own = isinstance(node, (ast.Call, ast.BinOp))
    return own + max((_depth(child) for child in ast.iter_child_nodes(node)), default=0)


def _block_call(step: Step) -> list[int] | None:
    """The numbers of the arguments of a step that is only the call of a block; None for other steps."""
    if step.child is None or not isinstance(step.child.call, Graph) or len(step.outs) != 1:
        return None
    found = numbers(step.code)
    return found if step.code == f"«m»({', '.join(f'«{n}»' for n in found)})" else None


def _live_steps(graph: Graph) -> list[Step]:
    """The steps that call a module or whose values are read_counts; other steps are dead code."""
    counts = read_counts(graph)
    return [
        step
        for step in graph.steps
        if step.child is not None or any(counts.get(out.number, 0) for out in step.outs)
    ]


def common_name(names: list[str]) -> str:
    """The common part of names that differ in a counter.

    >>> common_name(["conv2_block1_1_conv", "conv2_block2_1_conv"])
    'conv_1'
    """
    if len(set(names)) == 1:
        return names[0]
    return "_".join(sorted(_common_part(names).split("_"), key=str.isdigit))


def _common_part(names: list[str]) -> str:
    words = [re.split(r"_+", name) for name in names]
    tail: list[str] = []
    for column in zip(*(reversed(word) for word in words), strict=False):
        if len(set(column)) > 1:
            break
        tail.insert(0, column[0])
    head = [w for w in words[0] if all(w in other for other in words)]
    return "_".join(tail or head) or re.sub(r"\d+", "", names[0])
