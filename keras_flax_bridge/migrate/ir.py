"""The intermediate representation: a graph of values, steps and child modules.

The source is generated from it, and the module is created by executing that source, so the module, the
source and the weight map always agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_flax_bridge.migrate.transforms import Transform
from keras_flax_bridge.tree.paths import Path


class Call(NamedTuple):
    """A constructor call: the name of the module in the source, and the arguments by parameter."""

    function: str
    arguments: Mapping[str, Any]
    rngs: bool = True


class Weight(NamedTuple):
    """The mapping of one Keras variable to a native module.

    Attributes:
        key: the structural key of the Keras variable; in a rule, relative to the layer.
        paths: its paths in the native module; more than one if a transform splits it.
        transforms: convert the Keras array to the native arrays.
        kind: the kind of the Keras variable, as in `keras_internals`.
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
    """A child module of a graph, called at least once.

    Attributes:
        name: the name of the Keras layer.
        call: a constructor call, or a graph that becomes a separate class.
        weights: its weights; empty for a graph, whose children have the weights.
        frozen: paths of non-trainable parameters; `((),)` if all of them are.
        rule: its entry in the conversion report.
    """

    name: str
    call: Call | Graph
    weights: tuple[Weight, ...] = ()
    frozen: tuple[Path, ...] = ()
    rule: str = ""


@dataclass(eq=False)
class Step:
    """One line of the forward pass: an expression with the placeholder ``«3»`` for value number 3.

    The placeholder ``«m»`` is the child module that the step calls, if any.
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
    """The forward pass of one class: arguments, child modules, steps, and result.

    Attributes:
        name: the name of the Keras model or the block.
        inputs: the input values.
        arguments: the structure of the argument of ``__call__``; None for one argument per input.
        steps: the forward pass, in execution order.
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
        """All modules below this graph that are not graphs, with their paths."""
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
    """Replaces every placeholder of an expression; `text` is called with its number, or ``m``.

    >>> substituted("«m»(«3»)", {"m": "self.dense", "3": "x"}.__getitem__)
    'self.dense(x)'
    """
    return _PLACE.sub(lambda found: text(found.group(1)), code)
