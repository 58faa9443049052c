"""Paths of leaves in a tree: flatten, nest, fill and compare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from keras_flax_bridge.errors import StructureMismatchError

Path = tuple[str, ...]
Flat = dict[Path, Any]
Tree = TypeVar("Tree")


def join_path(path: Sequence[str]) -> str:
    """Writes a path as text; ``~`` and ``/`` inside a name are escaped as in RFC 6901.

    >>> join_path(("params", "dense", "kernel"))
    'params/dense/kernel'
    >>> join_path(("params", "a/b"))
    'params/a~1b'
    """
    return "/".join(name.replace("~", "~0").replace("/", "~1") for name in path)


def split_path(text: str) -> Path:
    """Reads a path that `join` wrote.

    >>> split_path("params/a~1b")
    ('params', 'a/b')
    """
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in text.split("/"))


def flatten_tree(tree: Any) -> Flat:
    """Every leaf of a pytree by its path; `None` and empty containers hold no leaf.

    >>> flatten_tree({"a": {"b": 1}, "c": [2, 3]})
    {('a', 'b'): 1, ('c', '0'): 2, ('c', '1'): 3}
    """
    return {key_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def named_leaves(leaves: Iterable[tuple[Any, Any]]) -> list[tuple[Path, Any]]:
    """The leaves of `jax.tree_util.tree_flatten_with_path`, with paths as tuples of strings."""
    return [(key_path(keys), leaf) for keys, leaf in leaves]


def key_path(keys: Sequence[Any]) -> Path:
    """A key path of jax as the path of a leaf."""
    return tuple(_name(key) for key in keys)


def _name(key: Any) -> str:
    """The plain name in one entry of a jax key path (dict key, index or attribute)."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def nest_paths(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Builds the nested dict of the given leaves.

    >>> nest_paths({("a", "b"): 1, ("a", "c"): 2})
    {'a': {'b': 1, 'c': 2}}

    Raises:
        StructureMismatchError: if one leaf is below another.
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
        join_path(path),
        got="a leaf, and another leaf below it",
        expected="no leaf below another leaf",
        fix="Rename one of them.",
    )


def fill_tree(like: Tree, flat: Mapping[Path, Any]) -> Tree:
    """A tree with the structure of `like` and the leaves of `flat`; leaves missing in `flat` are unchanged.

    >>> fill_tree({"a": (1, 2)}, {("a", "1"): 5})
    {'a': (1, 5)}
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    filled: Tree = jax.tree.unflatten(treedef, [flat.get(key_path(keys), leaf) for keys, leaf in leaves])
    return filled


def compiled_pattern(text: Any, where: str, fix: str) -> re.Pattern[str]:
    """Compiles a user's regular expression, which is searched for in paths.

    Raises:
        StructureMismatchError: if it is not valid.
    """
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise StructureMismatchError(
            where,
            got=f"{text!r}, which is not a valid regular expression ({error})",
            expected="a regular expression",
            fix=fix,
        ) from error
