"""Differences between two trees of leaves, by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from keras_flax_bridge.errors import StructureMismatchError, printed
from keras_flax_bridge.tree.leaves import KeyData, is_key, key_kind
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path


def spec_text(leaf: Any) -> str:
    """Dtype and shape in the notation of jax, such as ``float32[3,4]``.

    >>> import jax
    >>> spec_text(jax.ShapeDtypeStruct((3, 4), "float32"))
    'float32[3,4]'
    """
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _mismatch(got: Any, want: Any) -> str:
    """Descriptions of two leaves; with the PRNG implementation if key data only differ in it."""
    impl = f" of impl={got.impl!r}" if isinstance(got, KeyData) else ""
    wanted = f" of impl={str(key_kind(want))!r}" if impl and is_key(want) else ""
    return f"got {spec_text(got)}{impl}, expected {spec_text(want)}{wanted}"


class Diff(NamedTuple):
    """The differences between the expected and the given leaves."""

    missing: Flat
    unexpected: Flat
    mismatched: dict[Path, tuple[Any, Any]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def table(self) -> str:
        """One line per leaf; a missing one with the closest unexpected name."""
        return printed(self.lines())

    def lines(self) -> list[str]:
        """The lines of the table, with names as they are."""
        lines = [
            f"  missing     {join_path(path)}  {spec_text(leaf)}{_hint(path, self.unexpected)}"
            for path, leaf in self.missing.items()
        ]
        lines += [
            f"  unexpected  {join_path(path)}  {spec_text(leaf)}" for path, leaf in self.unexpected.items()
        ]
        lines += [
            f"  mismatched  {join_path(path)}  {_mismatch(got, want)}"
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


def diff_trees(got: Mapping[Path, Any], expected: Mapping[Path, Any]) -> Diff:
    """Compares leaves by path, shape and dtype.

    >>> diff_trees({("a",): 1}, {("b",): 1}).table()
    "  missing     b  int (the other side has 'a')\\n  unexpected  a  int"
    """
    missing = {path: leaf for path, leaf in expected.items() if path not in got}
    unexpected = {path: leaf for path, leaf in got.items() if path not in expected}
    both = ((path, got[path], leaf) for path, leaf in expected.items() if path in got)
    return Diff(missing, unexpected, {path: (a, b) for path, a, b in both if not same_spec(a, b)})


def same_spec(a: Any, b: Any) -> bool:
    """Whether two leaves have one shape and dtype."""
    return _shape_dtype(a) == _shape_dtype(b)


dtype_name = cache(str)  # numpy takes microseconds for it


def require_paths(tree: Any, like: Any, where: str) -> None:
    """Checks that a tree has the same paths as another; leaves are not compared.

    Raises:
        StructureMismatchError: listing the paths that are missing and unexpected.
    """
    got, expected = flatten_tree(tree), flatten_tree(like)
    if got.keys() != expected.keys():
        raise (
            diff_trees(got, expected)
            ._replace(mismatched={})
            .error(where, "It must have the structure of params.")
        )


def _shape_dtype(leaf: Any) -> tuple[Any, ...]:
    return tuple(getattr(leaf, "shape", ())), dtype_name(getattr(leaf, "dtype", type(leaf).__name__))


def _joined(paths: Iterable[Path]) -> list[str]:
    return [join_path(path) for path in paths]


_HINT_LIMIT = 200  # difflib compares every pair: beyond this many leaves a hint costs seconds


def _hint(path: Path, others: Mapping[Path, Any]) -> str:
    if len(others) > _HINT_LIMIT:
        return ""
    close = difflib.get_close_matches(join_path(path), _joined(others), n=1, cutoff=0.5)
    if not close and len(others) == 1:
        close = _joined(others)
    return f" (the other side has {close[0]!r})" if close else ""
