"""The intermediate form: one graph of values, steps and child modules.

The source is written from it alone, and the live module is created by executing that source. So the two,
and the weight map, can't diverge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_flax_bridge.migrate.transforms import Transform
from keras_flax_bridge.tree.paths import Path


class Call(NamedTuple):
    """A constructor call: the module's name in the source, and its arguments by parameter."""

    function: str
    arguments: Mapping[str, Any]
    rngs: bool = True


class Weight(NamedTuple):
    """The place of one Keras variable in a native module.

    Attributes:
        key: the structural key of the Keras variable; relative to its layer in a rule.
        paths: where it lies below the native module; several where a transform splits it.
        transforms: what turns the Keras array into the native ones.
        kind: what the variable is to Keras, as in `keras_internals`.
    """

    key: Path
    paths: tuple[Path, ...]
    transforms: tuple[Transform, ...] = ()
    kind: str = "param"


@dataclass(eq=False)
class Value:
    """A tensor of the graph."""

    number: int
    shape: tuple[int | None, ...]
    dtype: str
    hint: str = "x"

    def __str__(self) -> str:
        return f"«{self.number}»"


@dataclass(eq=False)
class Child:
    """A module that a graph holds, called once or more.

    Attributes:
        name: what the user calls it.
        call: how it is made: a constructor call, or a graph that becomes a class of its own.
        weights: what it holds; empty for a graph, whose children hold theirs.
        frozen: paths of parameters that Keras keeps from training; `()` alone for all of them.
        rule: what the conversion report says about it.
    """

    name: str
    call: Call | Graph
    weights: tuple[Weight, ...] = ()
    frozen: tuple[Path, ...] = ()
    rule: str = ""


@dataclass(eq=False)
class Step:
    """One line of the forward pass: an expression in which ``«3»`` stands for the value of number 3.

    ``«m»`` stands for the child that the step calls, if it calls one.
    """

    code: str
    outs: tuple[Value, ...]
    child: Child | None = None

    @property
    def args(self) -> list[int]:
        """The numbers of the values that the expression reads, in order of appearance."""
        return list(dict.fromkeys(numbers(self.code)))


@dataclass(eq=False)
class Graph:
    """The contents of one class: arguments, child modules, steps, and outputs.

    Attributes:
        name: what the user calls the model or the block.
        inputs: the values that come in.
        arguments: what ``__call__`` takes: names of values, or one structure that is unpacked.
        steps: the forward pass in order.
        result: the expression that is returned.
    """

    name: str
    inputs: list[Value] = field(default_factory=list)
    arguments: Any = None
    steps: list[Step] = field(default_factory=list)
    result: str = ""

    @property
    def children(self) -> list[Child]:
        """The child modules, each once, in the order of their first call."""
        return list({id(s.child): s.child for s in self.steps if s.child is not None}.values())

    def walk(self, path: Path, place: Callable[[Graph, Child], Path]) -> Iterator[tuple[Path, Child]]:
        """Every module below this graph that is not itself a graph, with its path."""
        for child in self.children:
            below = (*path, *place(self, child))
            if isinstance(child.call, Graph):
                yield from child.call.walk(below, place)
            else:
                yield below, child


_PLACE = re.compile(r"«(\d+|m)»")


def numbers(code: str) -> list[int]:
    """The numbers of the values in an expression."""
    return [int(n) for n in _PLACE.findall(code) if n != "m"]


def substituted(code: str, text: Callable[[str], str]) -> str:
    """An expression with every placeholder replaced; the callable gets its number, or ``m``.

    >>> substituted("«m»(«3»)", {"m": "self.dense", "3": "x"}.__getitem__)
    'self.dense(x)'
    """
    return _PLACE.sub(lambda found: text(found.group(1)), code)
