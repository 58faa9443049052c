"""Writes standalone Python source that only imports jax and flax, in the style of hand-written code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from flax import nnx

import keras_flax_bridge.migrate.rules.modules as modules
import keras_flax_bridge.migrate.rules.modules_recurrent as modules_recurrent
from keras_flax_bridge.migrate.ir import Call, Child, Graph, Weight
from keras_flax_bridge.migrate.python_text import (
    INDENT,
    WIDTH,
    Raw,
    docstring_line,
    identifier,
    literal,
    one_line,
    statement,
)
from keras_flax_bridge.migrate.rules.rule import OWN_MODULES
from keras_flax_bridge.migrate.source.classes import ClassDef, Classes
from keras_flax_bridge.migrate.source.forward import Forward
from keras_flax_bridge.migrate.source.gate import require_plain
from keras_flax_bridge.migrate.source.repeats import fold
from keras_flax_bridge.tree.paths import Path

import ast  # isort: skip

OWN: dict[str, Any] = {
    name: thing
    for file in (modules, modules_recurrent)
    for name, thing in vars(file).items()
    if getattr(thing, "__module__", "") == file.__name__
}
RESERVED = {"jax", "jnp", "nnx", "self", "rngs", "islands", "functools", *OWN}


class Source(NamedTuple):
    """The generated source and its weights.

    Attributes:
        text: the source.
        class_name: the name of the class of the model.
        weights: the key of every Keras variable, its paths in the module, and the transforms.
    """

    text: str
    class_name: str
    weights: tuple[Weight, ...]


def write(root: Graph, class_name: str, docstring: str, *, folded: bool = True) -> Source:
    """Writes the source of a graph; with `folded`, repeated blocks become classes."""
    if folded:
        fold(root)
    classes = Classes(root, class_name, RESERVED | set(OWN_MODULES))
    helpers = Helpers(classes)
    writers = [ClassWriter(made, classes, helpers) for made in classes.all]
    texts = [writer.text(docstring if writer.made.graph is root else "") for writer in writers]
    body = "\n\n\n".join(texts)
    require_plain("\n\n\n".join([*helpers.definitions, body]), {*OWN, *OWN_MODULES})
    own = _own_definitions(body)
    heads = [_imports("\n".join([*own, body])), *own, *helpers.definitions, body]
    return Source("\n\n\n".join(heads) + "\n", class_name, tuple(_weights(root, classes)))


def _imports(body: str) -> str:
    lines = []
    if re.search(r"\bmath\.", body):
        lines += ["import math", ""]
    if re.search(r"\bjax\.", body):
        lines.append("import jax")
    if re.search(r"\bjnp\.", body):
        lines.append("import jax.numpy as jnp")
    return "\n".join([*lines, "from flax import nnx"])


def _own_definitions(body: str) -> list[str]:
    """The definitions of the package's modules that a source uses, directly or indirectly."""
    available = {**OWN, **OWN_MODULES}
    found: set[str] = set()
    texts = [body]
    while texts:
        text = texts.pop()
        for name in available.keys() - found:
            if re.search(rf"(?<![\w.\"']){name}\b", text):
                found.add(name)
                texts.append(_definition(available[name]))
    return [_definition(thing) for name, thing in available.items() if name in found]


@cache
def _definition(thing: Any) -> str:
    return inspect.getsource(thing).rstrip()


# constructors
@cache
def parameters(function: str) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor, by its name in the source."""
    if function in OWN or function in OWN_MODULES:
        thing = {**OWN, **OWN_MODULES}[function]
    else:
        root, *rest = function.split(".")
        thing = {"nnx": nnx, "jnp": _jnp()}[root]
        for name in rest:
            thing = getattr(thing, name)
    found = _constructor_parameters(thing) if isinstance(thing, type) else inspect.signature(thing).parameters
    return {name: parameter for name, parameter in found.items() if name != "self"}


def _constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of `__init__`, and of the base classes that it passes keyword arguments to.

    ``inspect.signature`` of an `nnx.Module` class only shows ``*args`` and ``**kwargs``.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(vars(base)["__init__"]).parameters
            found = {**own, **found}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return found


def _jnp() -> ModuleType:
    import jax.numpy as jnp

    return jnp


def call_text(call: Call, hole: Any = lambda *place: None, place: tuple[Any, ...] = ()) -> str:
    """A constructor call without arguments that equal the defaults of Flax."""
    if call.function.startswith("islands["):
        return call.function
    positional: list[str] = []
    named: list[str] = []
    known = parameters(call.function)
    for name, value in call.arguments.items():
        if name == "*":
            positional += [call_text(item, hole, (*place, name, i)) for i, item in enumerate(value)]
            continue
        filled = hole(*place, name)
        if filled is None and _is_default(known[name], value):
            continue
        text = filled or _argument(value, hole, (*place, name))
        parameter = known[name]
        if (
            parameter.default is parameter.empty
            and parameter.kind is not parameter.KEYWORD_ONLY
            and not named
        ):
            positional.append(text)
        else:
            named.append(f"{name}={text}")
    if call.rngs and "rngs" in known:
        named.append("rngs=rngs")
    return f"{call.function}({', '.join([*positional, *named])})"


def _argument(value: Any, hole: Any, place: tuple[Any, ...]) -> str:
    return call_text(value, hole, place) if isinstance(value, Call) else literal(value)


def _is_default(parameter: inspect.Parameter, value: Any) -> bool:
    if parameter.default is parameter.empty:
        return False
    if isinstance(value, Raw):
        return value == _default_text(parameter.default)
    return type(value) is type(parameter.default) and value == parameter.default


def _default_text(value: Any) -> str:
    """The expression of a default in the source: a dtype or a function."""
    name = getattr(value, "__name__", None) or str(value)
    if name in ("float32", "bfloat16", "float16", "float64"):
        return f"jnp.{name}"
    return {"tanh": "jnp.tanh", "sigmoid": "nnx.sigmoid"}.get(name, name)


class ClassWriter:
    """Writes one class."""

    def __init__(self, made: ClassDef, classes: Classes, helpers: Helpers):
        self.made = made
        self.helpers = helpers
        self.classes = classes
        self.graph = made.graph
        self.forward = Forward(made, classes)
        made.places = self.forward.places

    def text(self, docstring: str) -> str:
        made = self.made
        names = [name for name, _ in made.parameters]
        head = f"class {made.name}(nnx.Module):"
        lines = [head, *([f"{INDENT}{docstring_line(docstring)}", ""] if docstring else [])]
        inside = self._constructor()
        keys = ["*, rngs"] if any("rngs" in line for line in inside) or not names else []
        lines += _define("__init__", ["self", *names, *(keys or ["*, rngs"])], inside or ["pass"])
        lines.append("")
        lines += _define("__call__", ["self", *self.forward.arguments], self.forward.lines())
        return "\n".join(lines)

    def _constructor(self) -> list[str]:
        lines: list[str] = []
        for attribute, positions in self.forward.attributes():
            head = f"self.{attribute} = "
            texts = [self._child_text(position) for position in positions]
            single = self.made.places[positions[0]] == (attribute,)
            lines += statement(head, texts[0] if single else _list_text(texts), INDENT * 2)
        return [line[len(INDENT * 2) :] for line in lines]

    def _child_text(self, position: int) -> str:
        child = self.graph.children[position]
        hole = self._hole(position)
        if isinstance(child.call, Graph):
            made = self.classes.of[id(child.call)]
            values = made.values(child.call)
            items = [hole(name) or literal(value) for name, value in values.items()]
            text = f"{made.name}({', '.join([*items, 'rngs=rngs'])})"
        else:
            text = call_text(child.call, hole)
            if not any(place[0] == position and place[1] != "num_features" for place in self.made.holes):
                text = self.helpers.shortened(text, child)
        return _frozen(text, child)

    def _hole(self, position: int) -> Any:
        return lambda *place: self.made.holes.get((position, *place))


def _frozen(text: str, child: Child) -> str:
    if not child.frozen or isinstance(child.call, Graph):
        return text
    if isinstance(child.call, Call) and child.call.function == "Frozen":
        return text
    paths = "".join(f", {literal(path)}" for path in child.frozen if path)
    return f"freeze({text}{paths})"


def _list_text(texts: list[str]) -> str:
    """An `nnx.List` of modules, with a comprehension for runs of equal modules."""
    runs: list[tuple[str, int]] = []
    for text in texts:
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1] + 1)
        else:
            runs.append((text, 1))
    if len(runs) == 1:
        return f"nnx.List([{runs[0][0]} for _ in range({runs[0][1]})])"
    items = [text if count == 1 else f"*({text} for _ in range({count}))" for text, count in runs]
    return f"nnx.List([{', '.join(items)}])"


def _define(name: str, arguments: Iterable[str], body: Iterable[str]) -> list[str]:
    head = f"{INDENT}def {name}({', '.join(arguments)}):"
    if len(head) <= WIDTH:
        lines = [head]
    else:
        listed = ", ".join(arguments)
        inner = f"{INDENT * 2}{listed}"
        if len(inner) <= WIDTH:
            lines = [f"{INDENT}def {name}(", inner, f"{INDENT}):"]
        else:
            each = [f"{INDENT * 2}{a}," for a in listed.split(", ")]
            lines = [f"{INDENT}def {name}(", *each, f"{INDENT}):"]
    return [*lines, *(f"{INDENT * 2}{line}" if line else "" for line in body)]


class Helpers:
    """Functions that construct normalization layers whose settings are used several times."""

    def __init__(self, classes: Classes):
        counts: dict[tuple[str, str], int] = {}
        for made in classes.all:
            for child in made.graph.children:
                key = _settings(child)
                if key:
                    counts[key] = counts.get(key, 0) + 1
        self.names: dict[tuple[str, str], str] = {}
        for key, count in counts.items():
            if count >= SHARED:
                name = NORMS[key[0]]
                self.names[key] = identifier(name, set(self.names.values()).__contains__, name)

    @property
    def definitions(self) -> list[str]:
        return [
            "\n".join(
                [
                    f"def {name}(features, *, rngs):",
                    *statement("return ", f"{function}(features, {settings}, rngs=rngs)", INDENT),
                ]
            )
            for (function, settings), name in self.names.items()
        ]

    def shortened(self, text: str, child: Child) -> str:
        """The constructor call of a child, shortened with a helper if there is one for its settings."""
        key = _settings(child)
        if key not in self.names:
            return text
        return text.replace(key[0], self.names[key], 1).replace(f"{key[1]}, ", "", 1)


SHARED = 3  # minimum number of layers with equal settings for a helper
NORMS = {
    "nnx.BatchNorm": "batch_norm",
    "nnx.LayerNorm": "layer_norm",
    "nnx.RMSNorm": "rms_norm",
}


def _settings(child: Child) -> tuple[str, str] | None:
    """The class of a normalization layer and its settings except the size; None for other modules."""
    if isinstance(child.call, Graph) or child.call.function not in NORMS:
        return None
    text = call_text(child.call)
    inside = text[len(child.call.function) + 1 : -len(", rngs=rngs)")]
    _, _, settings = inside.partition(", ")
    return (child.call.function, settings) if settings else None


def _weights(root: Graph, classes: Classes) -> Iterable[Weight]:
    """The weights of all classes, with paths from the root of the module."""

    def place(graph: Graph, child: Child) -> Path:
        made = classes.of[id(graph)]
        return made.places[next(i for i, c in enumerate(graph.children) if c is child)]

    for path, child in root.walk((), place):
        for weight in child.weights:
            yield weight._replace(paths=tuple((*path, *below) for below in weight.paths))


__all__ = ["Source", "ast", "identifier", "one_line", "write"]
