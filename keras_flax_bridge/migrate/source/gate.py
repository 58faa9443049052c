"""Checks the names in generated source before it is returned or executed.

Rules write text in quotes, numbers by `code.number`, names by `code.identifier`. This is a second line of
defence: a rule that forgets it still can't turn text from a file into code.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Mapping

import jax
from flax import nnx

from keras_flax_bridge.errors import UnsupportedLayerError

_ROOTS: Mapping[str, types.ModuleType | None] = {"jax": jax, "jnp": jax.numpy, "nnx": nnx, "math": None}
_GIVEN = {"self", "rngs", "islands", "features"}
_BUILTINS = {
    *{"abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "isinstance", "len"},
    *{"list", "map", "max", "min", "range", "reversed", "round", "slice", "sorted", "sum", "tuple", "zip"},
}
# of jax and flax: what reads, writes, or calls back out of a computation
_OUTSIDE = {
    *{"debug", "distributed", "export", "from_dlpack", "fromfile", "io_callback", "load", "monitoring"},
    *{"profiler", "pure_callback", "save", "savez", "tofile"},
}
_STATEMENTS = (ast.Assign, ast.ClassDef, ast.Expr, ast.For, ast.FunctionDef, ast.Pass, ast.Return)
_FOREIGN = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.JoinedStr)


def require_plain(text: str, known: set[str]) -> None:
    """Checks that source calls nothing but jax, flax, modules that are known, and its own names.

    Args:
        text: classes and functions, without their imports.
        known: names that are defined elsewhere in the same source.

    Raises:
        UnsupportedLayerError: naming what it would use.
    """
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    names = {*known, *defined, *_GIVEN, *_BUILTINS, *_ROOTS}
    found = next((thing for node in tree.body for thing in _strange(node, names)), None)
    if found is not None:
        raise UnsupportedLayerError(
            "source",
            got=f"{found[:60]!r} in what was written for the model",
            expected="public names of jax and flax, and those of the model itself",
            fix="A rule wrote a layer setting as code. Please report it, with the rule.",
        )


def _strange(node: ast.AST, names: set[str]) -> Iterator[str]:
    """The names that a part of the source uses without permission."""
    if (isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS)) or isinstance(node, _FOREIGN):
        yield ast.unparse(node)
    elif isinstance(node, ast.Name) and node.id not in names:
        yield node.id
    elif isinstance(node, ast.Attribute) and not _is_public(node):
        yield ast.unparse(node)
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.GeneratorExp)):
        names = names | set(_bound(node))  # a name that a function gives a value is its own in all of it
    for child in ast.iter_child_nodes(node):
        yield from _strange(child, names)


def _bound(function: ast.AST) -> Iterator[str]:
    """Names that a function gives values to."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _is_public(node: ast.Attribute) -> bool:
    """Whether an attribute is public, and its way through jax and flax stays inside of them."""
    if node.attr.startswith("_"):
        return False
    *path, root = [*_path(node)]
    if root not in _ROOTS:
        return root == "self" or node.attr not in _OUTSIDE
    place = _ROOTS[root]
    for name in reversed(path):
        place = vars(place).get(name) if isinstance(place, types.ModuleType) else None
        if name in _OUTSIDE or _is_foreign(place):
            return False
    return True


def _is_foreign(thing: object) -> bool:
    return isinstance(thing, types.ModuleType) and thing.__name__.split(".")[0] not in ("jax", "flax")


def _path(node: ast.expr) -> Iterator[str]:
    """The names of an attribute from the last to the first; ``""`` where the first is no name."""
    while isinstance(node, ast.Attribute):
        yield node.attr
        node = node.value
    yield node.id if isinstance(node, ast.Name) else ""
