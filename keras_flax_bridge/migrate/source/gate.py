"""Checks the names in generated source before it is returned or executed.

Rules write strings with `python_text.literal`, numbers with `python_text.number` and names with
`python_text.identifier`. This check is a second line of defence: a rule that omits them still can't turn text
from a file into code.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Mapping

import jax
from flax import nnx

from keras_flax_bridge.errors import UnsupportedLayerError

_ROOTS: Mapping[str, types.ModuleType | None] = {"jax": jax, "jnp": jax.numpy, "nnx": nnx, "math": None}
_PREDEFINED = {"self", "rngs", "islands", "features"}
_BUILTINS = {
    *{"abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "isinstance", "len"},
    *{"list", "map", "max", "min", "range", "reversed", "round", "slice", "sorted", "sum", "tuple", "zip"},
}
# names in jax and flax that do I/O or call back into Python
_SIDE_EFFECTS = {
    *{"debug", "distributed", "export", "from_dlpack", "fromfile", "io_callback", "load", "monitoring"},
    *{"profiler", "pure_callback", "save", "savez", "tofile"},
}
_STATEMENTS = (ast.Assign, ast.ClassDef, ast.Expr, ast.For, ast.FunctionDef, ast.Pass, ast.Return)
_FOREIGN = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.JoinedStr)


def require_plain(text: str, known: set[str]) -> None:
    """Checks that source only uses public names of jax and flax, known names, and its own definitions.

    Args:
        text: classes and functions, without imports.
        known: names that are defined elsewhere in the same source.

    Raises:
        UnsupportedLayerError: naming the first expression that is not allowed.
    """
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    names = {*known, *defined, *_PREDEFINED, *_BUILTINS, *_ROOTS}
    found = next((thing for node in tree.body for thing in _disallowed(node, names)), None)
    if found is not None:
        raise UnsupportedLayerError(
            "source",
            got=f"{found[:60]!r} in the generated source",
            expected="public names of jax and flax, and names that the source defines",
            fix="A rule wrote a layer setting as code. Please report it, with the rule.",
        )


def _disallowed(node: ast.AST, names: set[str]) -> Iterator[str]:
    """The expressions in a part of the source that are not allowed."""
    if (isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS)) or isinstance(node, _FOREIGN):
        yield ast.unparse(node)
    elif isinstance(node, ast.Name) and node.id not in names:
        yield node.id
    elif isinstance(node, ast.Attribute) and not _is_public(node):
        yield ast.unparse(node)
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.GeneratorExp)):
        names = names | set(_bound_names(node))  # a name that is bound in a function is local in all of it
    for child in ast.iter_child_nodes(node):
        yield from _disallowed(child, names)


def _bound_names(function: ast.AST) -> Iterator[str]:
    """Names that a function binds."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _is_public(node: ast.Attribute) -> bool:
    """Whether an attribute is public, and each module on its path belongs to jax or flax."""
    if node.attr.startswith("_"):
        return False
    *path, root = [*_reversed_names(node)]
    if root not in _ROOTS:
        return root == "self" or node.attr not in _SIDE_EFFECTS
    place = _ROOTS[root]
    for name in reversed(path):
        place = vars(place).get(name) if isinstance(place, types.ModuleType) else None
        if name in _SIDE_EFFECTS or _is_foreign(place):
            return False
    return True


def _is_foreign(thing: object) -> bool:
    return isinstance(thing, types.ModuleType) and thing.__name__.split(".")[0] not in ("jax", "flax")


def _reversed_names(node: ast.expr) -> Iterator[str]:
    """The names of a dotted expression from last to first; the first is ``""`` if it is not a name."""
    while isinstance(node, ast.Attribute):
        yield node.attr
        node = node.value
    yield node.id if isinstance(node, ast.Name) else ""
