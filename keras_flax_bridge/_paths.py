"""Paths of leaves in a tree: flatten, nest, fill, compare, and say the difference in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax

from keras_flax_bridge._printable import printed
from keras_flax_bridge.errors import StructureMismatchError

Path = tuple[str, ...]
Flat = dict[Path, Any]


def join(path: Sequence[str]) -> str:
    """Writes a path as text; ``~`` and ``/`` inside a name are escaped as in RFC 6901.

    >>> join(("params", "dense", "kernel"))
    'params/dense/kernel'
    >>> join(("params", "a/b"))
    'params/a~1b'
    """
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


def split(text: str) -> Path:
    """Reads a path that `join` wrote.

    >>> split("params/a~1b")
    ('params', 'a/b')
    """
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in text.split("/"))


def flatten(tree: Any) -> Flat:
    """Every leaf of a pytree by its path; `None` and empty containers hold no leaf.

    >>> flatten({"a": {"b": 1}, "c": [2, 3]})
    {('a', 'b'): 1, ('c', '0'): 2, ('c', '1'): 3}
    """
    return {_key_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def named(leaves: Iterable[tuple[Any, Any]]) -> list[tuple[Path, Any]]:
    """What `jax.tree_util.tree_flatten_with_path` gives, with plain paths."""
    return [(_key_path(keys), leaf) for keys, leaf in leaves]


def _key_path(keys: Sequence[Any]) -> Path:
    return tuple(_name(key) for key in keys)


def _name(key: Any) -> str:
    """The plain name in one entry of a jax key path (dict key, index or attribute)."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dict of the given leaves.

    >>> nest({("a", "b"): 1, ("a", "c"): 2})
    {'a': {'b': 1, 'c': 2}}

    Raises:
        StructureMismatchError: if a leaf lies below another.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise _not_nested(path)
        if path[-1] in node:
            raise _not_nested(path)
        node[path[-1]] = leaf
    return tree


def _not_nested(path: Path) -> StructureMismatchError:
    return StructureMismatchError(
        join(path),
        got="a leaf, and another one above or below it",
        expected="leaves of which none lies below another",
        fix="Rename one of them.",
    )


def fill(like: Any, flat: Mapping[Path, Any]) -> Any:
    """A tree of the structure of `like`, with the leaves of `flat`; a leaf it lacks stays as it is.

    >>> fill({"a": (1, 2)}, {("a", "1"): 5})
    {'a': (1, 5)}
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [flat.get(_key_path(keys), leaf) for keys, leaf in leaves])


def spec(leaf: Any) -> str:
    """Dtype and shape in the notation of jax, such as ``float32[3,4]``.

    >>> spec(jax.ShapeDtypeStruct((3, 4), "float32"))
    'float32[3,4]'
    """
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


class Diff(NamedTuple):
    """What differs between an expected and a given set of leaves."""

    missing: Flat
    unexpected: Flat
    mismatched: dict[Path, tuple[Any, Any]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def table(self) -> str:
        """One line a leaf; a missing one comes with the closest name among the unexpected."""
        return printed(self.lines())

    def lines(self) -> list[str]:
        """The lines of the table, with names as they are."""
        lines = [
            f"  missing     {join(path)}  {spec(leaf)}{_hint(path, self.unexpected)}"
            for path, leaf in self.missing.items()
        ]
        lines += [f"  unexpected  {join(path)}  {spec(leaf)}" for path, leaf in self.unexpected.items()]
        lines += [
            f"  mismatched  {join(path)}  got {spec(got)}, expected {spec(want)}"
            for path, (got, want) in self.mismatched.items()
        ]
        return lines

    def error(self, where: str, fix: str) -> StructureMismatchError:
        """The error that lists all of it."""
        return StructureMismatchError(
            where,
            report=self.lines(),
            missing=_joined(self.missing),
            unexpected=_joined(self.unexpected),
            mismatched=_joined(self.mismatched),
            fix=fix,
        )


def diff(got: Mapping[Path, Any], expected: Mapping[Path, Any]) -> Diff:
    """Compares leaves by path, shape and dtype.

    >>> diff({("a",): 1}, {("b",): 1}).table()
    "  missing     b  int (the other side has 'a')\\n  unexpected  a  int"
    """
    missing = {path: leaf for path, leaf in expected.items() if path not in got}
    unexpected = {path: leaf for path, leaf in got.items() if path not in expected}
    both = ((path, got[path], leaf) for path, leaf in expected.items() if path in got)
    return Diff(missing, unexpected, {path: (a, b) for path, a, b in both if not same(a, b)})


def same(a: Any, b: Any) -> bool:
    """Whether two leaves have one shape and dtype."""
    return _shape_dtype(a) == _shape_dtype(b)


dtype_name = cache(str)  # numpy takes microseconds for it


def require_paths(tree: Any, like: Any, where: str) -> None:
    """Checks that a tree has the paths of another, whatever its leaves are.

    Raises:
        StructureMismatchError: listing the paths that are missing and unexpected.
    """
    got, expected = flatten(tree), flatten(like)
    if got.keys() != expected.keys():
        raise (
            diff(got, expected)._replace(mismatched={}).error(where, "It must have the structure of params.")
        )


def _shape_dtype(leaf: Any) -> tuple:
    return tuple(getattr(leaf, "shape", ())), dtype_name(getattr(leaf, "dtype", type(leaf).__name__))


def _joined(paths: Iterable[Path]) -> list[str]:
    return [join(path) for path in paths]


def pattern(text: Any, where: str, fix: str) -> re.Pattern:
    """A regular expression that a user gave, to be searched for in paths.

    Raises:
        StructureMismatchError: if it is none.
    """
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise StructureMismatchError(
            where, got=f"{text!r}, which is no regular expression ({error})", expected="one", fix=fix
        ) from error


_HINT_LIMIT = 200  # difflib compares every pair: beyond this many leaves a hint costs seconds


def _hint(path: Path, others: Mapping[Path, Any]) -> str:
    if len(others) > _HINT_LIMIT:
        return ""
    close = difflib.get_close_matches(join(path), _joined(others), n=1, cutoff=0.5)
    if not close and len(others) == 1:
        close = _joined(others)
    return f" (the other side has {close[0]!r})" if close else ""
