"""Finds repeated blocks in a graph, and makes each a separate graph.

A sequence of steps is a candidate if it occurs several times with the same expressions, the same connections
and the same kinds of modules; numbers in constructors may differ. The candidate that saves the most lines is
extracted everywhere; then the search continues in the remaining graph and inside the extracted blocks.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from keras_flax_bridge.migrate.ir import Child, Graph, Step, Value, numbers, substituted
from keras_flax_bridge.migrate.source.classes import child_signature, literals, signature

LONGEST = 90  # maximum number of steps in a block
INPUTS = 3  # maximum number of inputs of a block
CHILD_LINES, STEP_LINES = 1.7, 0.7  # lines of source for a module and for a step
CLASS_LINES = 7.0  # lines of source for a class
CHAINED, LOOSE = 0.4, 1.8  # lines for each use of a class: in a loop over blocks, or on a separate line
LEAST, WORTH_A_NAME = 2, 4  # minimum number of modules in a block, and in a block that gets CHAIN_BONUS
CHAIN_BONUS = 1.6  # factor for blocks that are chained, as in a hand-written model
NAME_BONUS = 1.6  # factor for blocks whose layers share a numbered name prefix
WHOLE_BONUS = 1.05  # factor for blocks that read their input twice: a residual connection
SETTINGS = 6  # maximum number of settings that differ between the instances of a block
SETTING_LINES = 1.5  # lines of source for each setting that differs


class Repetition(NamedTuple):
    """A sequence of steps that occurs several times."""

    score: float
    length: int
    starts: tuple[int, ...]
    out: int  # index of the output of the last step that is read outside


def fold(graph: Graph) -> None:
    """Turns repeated blocks into separate graphs, in place."""
    _fold([graph], set())


def _fold(graphs_of_class: list[Graph], seen: set[int]) -> None:
    """Extracts the same blocks from graphs that become one class."""
    graphs_of_class = [graph for graph in graphs_of_class if id(graph) not in seen]
    seen |= {id(graph) for graph in graphs_of_class}
    while graphs_of_class and (found := _Sequences(graphs_of_class[0]).best()) is not None:
        for graph in graphs_of_class:
            _extract(graph, found)
    below: dict[Hashable, list[Graph]] = {}
    for graph in graphs_of_class:
        for child in graph.children:
            if isinstance(child.call, Graph) and id(child.call) not in seen:
                below.setdefault(signature(child.call), []).append(child.call)
    for graphs in below.values():
        _fold(list({id(graph): graph for graph in graphs}.values()), seen)


class _Sequences:
    """The steps of one graph as comparable tokens."""

    def __init__(self, graph: Graph):
        self.steps = graph.steps
        self.inputs = graph.inputs
        self.values = {out.number: out for step in graph.steps for out in step.outs}
        self.made: dict[int, tuple[int, int]] = {}  # by value: its step and output index
        self.last: dict[int, int] = {}  # by value: the last step that reads it
        self.child_first: dict[int, int] = {}
        self.child_last: dict[int, int] = {}
        kinds: dict[Hashable, int] = {}
        self.kinds: list[int] = []
        self.args: list[list[int]] = []
        signatures: dict[int, Hashable] = {}
        self.literals: dict[int, tuple[str, ...]] = {}
        for i, step in enumerate(self.steps):
            args = step.args
            self.args.append(args)
            self.last |= dict.fromkeys(args, i)
            for place, out in enumerate(step.outs):
                self.made[out.number] = (i, place)
            kind: Hashable = None
            if step.child is not None:
                self.child_first.setdefault(id(step.child), i)
                self.child_last[id(step.child)] = i
                if id(step.child) not in signatures:
                    signatures[id(step.child)] = child_signature(step.child)
                    self.literals[id(step.child)] = tuple(literals(step.child))
                kind = signatures[id(step.child)]
            order = {str(number): f"«{j}»" for j, number in enumerate(args)} | {"m": "«m»"}
            text = substituted(step.code, order.__getitem__)
            self.kinds.append(kinds.setdefault((text, len(step.outs), kind), len(kinds)))
        self.last |= dict.fromkeys(numbers(graph.result), len(self.steps))
        self.ends = self._live_values()

    def _live_values(self) -> list[list[tuple[int, int]]]:
        """For each step, the values that were computed before it and are read by it or later, in order."""
        ends: list[list[tuple[int, int]]] = [[]]
        for i, step in enumerate(self.steps):
            live = [item for item in ends[-1] if self.last.get(item[1], -1) > i]
            live += [(i, out.number) for out in step.outs if self.last.get(out.number, -1) > i]
            ends.append(live)
        return ends

    def best(self) -> Repetition | None:
        """The repeated sequence of steps that saves the most lines."""
        best: Repetition | None = None
        for length, starts in self._repeated():
            inside = self.steps[starts[0] : starts[0] + length]
            children = {id(step.child) for step in inside if step.child is not None}
            if len(children) < LEAST or all(_is_block(step.child) for step in inside):
                continue  # a sequence of blocks only becomes a loop anyway
            body = len(children) * CHILD_LINES + length * STEP_LINES
            if best is not None and _score(body, len(starts), True) * NAME_BONUS * WHOLE_BONUS <= best.score:
                continue
            closed = [start for start in starts if self._is_closed(start, length)]
            apart = _without_overlaps(closed, length)
            chained = len(children) >= WORTH_A_NAME and self._are_chained(apart, length)
            if len(apart) < 2:
                continue
            named = NAME_BONUS if all(self._is_named(start, length) for start in apart) else 1.0
            whole = WHOLE_BONUS if self._reads_input_twice(apart[0], length) else 1.0
            score = _score(body, len(apart), chained) * named * whole
            if score <= (best.score if best else 0):
                continue
            settings = self._differing_settings(apart, length)
            score -= settings * SETTING_LINES
            if settings <= SETTINGS and score > (best.score if best else 0):
                last = apart[0] + length - 1
                out = next(number for made, number in reversed(self.ends[last + 1]) if made == last)
                best = Repetition(score, length, tuple(apart), self.made[out][1])
        return best

    def _repeated(self) -> Iterator[tuple[int, list[int]]]:
        """Lengths of repeated sequences, each with the starts of equal sequences."""
        outside: dict[int, dict[int, int]] = {i: {} for i in range(len(self.steps))}
        groups = [list(range(len(self.steps)))]
        for length in range(1, LONGEST + 1):
            found: list[list[int]] = []
            for group in groups:
                by_token: dict[Hashable, list[int]] = {}
                for start in group:
                    token = self._token(start, start + length - 1, outside[start])
                    if token is not None:
                        by_token.setdefault(token, []).append(start)
                found += [starts for starts in by_token.values() if len(starts) > 1]
            if not found:
                return
            groups = found
            if length > 1:
                yield from ((length, starts) for starts in found)

    def _token(self, start: int, at: int, outside: dict[int, int]) -> Hashable:
        """A key of a step relative to the start of a sequence; None if the sequence must end before it."""
        if at >= len(self.steps):
            return None
        wires = []
        for number in self.args[at]:
            made, place = self.made.get(number, (-1, 0))
            wires.append(
                (made - start, place) if made >= start else outside.setdefault(number, -1 - len(outside))
            )
        if len(outside) > INPUTS:
            return None
        child = self.steps[at].child
        module = None
        if child is not None:
            first = self.child_first[id(child)]
            if first < start:
                return None  # the module is shared with an earlier step
            module = first - start
        return self.kinds[at], tuple(wires), module

    def _is_closed(self, start: int, length: int) -> bool:
        """Whether only the last value is read outside, and no module is shared with later steps."""
        end = start + length
        live = self.ends[end]
        inside = live[bisect_left(live, (start, -1)) :]
        if [item[0] for item in inside] != [end - 1]:
            return False
        return all(
            self.child_last[id(step.child)] < end for step in self.steps[start:end] if step.child is not None
        )

    def _reads_input_twice(self, start: int, length: int) -> bool:
        """Whether the first input is read by more than one step."""
        first = self.args[start][0] if self.args[start] else -1
        return sum(first in args for args in self.args[start : start + length]) > 1

    def _are_chained(self, starts: list[int], length: int) -> bool:
        """Whether most of the sequences are chained with an adjacent block, and so become part of a loop."""
        known = {i for i, step in enumerate(self.steps) if _is_block(step.child)}
        ends, begins = known | {start + length - 1 for start in starts}, known | set(starts)
        in_loop = [
            (start - 1 in ends or start + length in begins) and self._is_chained(start, length)
            for start in starts
        ]
        return sum(in_loop) * 2 > len(starts)

    def _is_named(self, start: int, length: int) -> bool:
        """Whether the names inside share a prefix with a number, and the names before and after don't."""
        end = start + length
        names = [step.child.name for step in self.steps[start:end] if step.child is not None]
        shared = _name(names)
        around = [self._nearest_name(start - 1, -1), self._nearest_name(end, 1)]
        return bool(re.search(r"\d", shared)) and not any(
            name == shared or name.startswith(f"{shared}_") for name in around
        )

    def _nearest_name(self, at: int, way: int) -> str:
        """The name of the nearest module before or after a step."""
        while 0 <= at < len(self.steps):
            child = self.steps[at].child
            if child is not None:
                return child.name
            at += way
        return ""

    def _is_chained(self, start: int, length: int) -> bool:
        """Whether only one value crosses each end of the sequence."""
        end = start + length
        return self._crossing_values(start) <= 1 and self._crossing_values(end) == 1

    def _crossing_values(self, at: int) -> int:
        """The number of values that are computed before a step and read by it or later, without masks."""
        made = (self.values[number] for _, number in self.ends[at])
        inputs = sum(self.last.get(value.number, -1) >= at for value in self.inputs if value.dtype != "bool")
        return inputs + sum(value.dtype != "bool" for value in made)

    def _differing_settings(self, starts: list[int], length: int) -> int:
        """The number of constructor settings that differ; settings that vary alike count once."""
        columns = zip(*(list(self._literals(start, length)) for start in starts), strict=True)
        return len({column for column in columns if len(set(column)) > 1})

    def _literals(self, start: int, length: int) -> Iterator[str]:
        seen: set[int] = set()
        for step in self.steps[start : start + length]:
            if step.child is not None and id(step.child) not in seen:
                seen.add(id(step.child))
                yield from self.literals[id(step.child)]


def _is_block(child: Child | None) -> bool:
    return child is not None and isinstance(child.call, Graph)


def _score(body: float, count: int, chained: bool) -> float:
    saved = count * body - (body + CLASS_LINES + count * (CHAINED if chained else LOOSE))
    return saved * CHAIN_BONUS if chained and saved > 0 else saved


def _without_overlaps(starts: list[int], length: int) -> list[int]:
    """The starts of sequences that don't overlap, in order."""
    kept: list[int] = []
    for start in sorted(starts):
        if not kept or start >= kept[-1] + length:
            kept.append(start)
    return kept


def _extract(graph: Graph, found: Repetition) -> None:
    """Replaces every repetition by one step that calls a block."""
    values = {value.number: value for value in graph.inputs}
    values |= {out.number: out for step in graph.steps for out in step.outs}
    steps: list[Step] = []
    at = 0
    for start in found.starts:
        steps += graph.steps[at:start]
        at = start + found.length
        steps.append(_block(graph.steps[start:at], found.out, values))
    graph.steps = [*steps, *graph.steps[at:]]


def _block(inside: list[Step], place: int, values: dict[int, Value]) -> Step:
    made = {out.number for step in inside for out in step.outs}
    outside = list(dict.fromkeys(n for step in inside for n in step.args if n not in made))
    out = inside[-1].outs[place]
    name = _name([step.child.name for step in inside if step.child is not None])
    block = Graph(name, [values[number] for number in outside], None, inside, str(out))
    call = f"«m»({', '.join(f'«{number}»' for number in outside)})"
    return Step(call, (out,), Child(name, block, rule="a block"))


def _name(names: list[str]) -> str:
    """The common prefix of the names of the modules in a block; ``block`` if there is none."""
    words = [re.split(r"_+", name) for name in names]
    head = []
    for column in zip(*words, strict=False):
        if len(set(column)) > 1:
            break
        head.append(column[0])
    shared = "_".join(head)
    return shared if len(names) > 1 and re.search(r"[A-Za-z]", shared) else "block"
