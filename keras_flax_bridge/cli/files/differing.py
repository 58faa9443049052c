"""Compares two files or checkpoints: paths, shapes, dtypes, values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_flax_bridge.checkpoint.groups import groups, is_large
from keras_flax_bridge.checkpoint.readers import Contents
from keras_flax_bridge.checkpoint.slices import slices, together
from keras_flax_bridge.errors import printed
from keras_flax_bridge.state.report import counted, kind_of, listed
from keras_flax_bridge.tree.diff import diff_trees, spec_text
from keras_flax_bridge.tree.paths import Flat, Path, join_path
from keras_flax_bridge.tree.reports import Table, table_of

KINDS = ("missing", "unexpected", "shape", "dtype", "value")


class DifferenceRow(NamedTuple):
    """A leaf that differs.

    Attributes:
        kind: one of `KINDS`; ``missing`` is only in the first file, ``unexpected`` only in the second.
        path: of the leaf.
        a: its dtype and shape in the first file; ``""`` if it is not there, or if values differ.
        b: the same in the second.
        largest: the largest absolute difference of its values, or text if it is not a number.
    """

    kind: str
    path: str
    a: str = ""
    b: str = ""
    largest: float | str = ""

    def to_json(self) -> dict[str, Any]:
        """The leaf as JSON types, with what its kind of difference has."""
        if self.kind == "value":
            return {"path": self.path, "largest": self.largest}
        if self.kind in ("missing", "unexpected"):
            return {"path": self.path, "leaf": self.a or self.b}
        return {"path": self.path, "a": self.a, "b": self.b}

    def __str__(self) -> str:
        number = self.largest if isinstance(self.largest, str) else f"{self.largest:.6g}"
        said = " and ".join(filter(None, (self.a, self.b))) or number
        return f"{self.kind:<10}  {self.path}  {said}"


class FileDifference(NamedTuple):
    """The differences between two files, leaf by leaf.

    Attributes:
        a: the first file or folder.
        b: the second.
        compared: how many leaves both have.
        rows: one for each leaf that differs, in the order of `KINDS`.
        skipped: paths that weren't compared, by the reason.

    Example:
        >>> rows = (DifferenceRow("dtype", "params/bias", "float32[2]", "bfloat16[2]"),)
        >>> print(FileDifference("/runs/a", "/runs/b", 4, rows, {}))
        dtype       params/bias  float32[2] and bfloat16[2]
        4 leaves compared: 1 dtype
    """

    a: str
    b: str
    compared: int
    rows: tuple[DifferenceRow, ...]
    skipped: dict[str, list[str]]

    @property
    def ok(self) -> bool:
        """Whether no difference was found."""
        return not self.rows

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON types: the leaves by kind of difference."""
        head = {"a": self.a, "b": self.b, "ok": self.ok, "same": self.ok, "compared": self.compared}
        rows = {kind: [row.to_json() for row in self.rows if row.kind == kind] for kind in KINDS}
        return {**head, **rows, "not_compared": self.skipped}

    def __str__(self) -> str:
        return printed([*map(str, self.rows), *self._notes(), self._head()])

    def _head(self) -> str:
        counts = Counter(row.kind for row in self.rows)
        said = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "no difference"
        return f"{counted(self.compared, 'leaf')} compared: {said}"

    def _notes(self) -> list[str]:
        return [f"not compared: {listed(names)} ({why})" for why, names in self.skipped.items()]

    def _table(self) -> Table:
        title = f"{self.a} and {self.b}: {self._head()}"
        return table_of(title, DifferenceRow._fields, self.rows, self._notes())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def difference(a: Contents, b: Contents, *, values: bool = False) -> FileDifference:
    """Compares two files or checkpoints.

    Args:
        a: the first.
        b: the second.
        values: whether values are compared too; they are read only then.
    """
    first, second, skipped = _comparable(a, b)
    diff = diff_trees(second, first)
    both = {path: (leaf, second[path]) for path, leaf in first.items() if path in second}
    alike = [path for path in both if path not in diff.mismatched]
    rows = (
        *(DifferenceRow("missing", join_path(p), a=spec_text(leaf)) for p, leaf in diff.missing.items()),
        *(
            DifferenceRow("unexpected", join_path(p), b=spec_text(leaf))
            for p, leaf in diff.unexpected.items()
        ),
        *_unlike("shape", both, diff.mismatched),
        *_unlike("dtype", both, diff.mismatched),
        *(_values(a, b, {path: both[path] for path in alike}) if values else ()),
    )
    return FileDifference(str(a.path), str(b.path), len(both), rows, skipped)


def _comparable(a: Contents, b: Contents) -> tuple[Flat, Flat, dict[str, list[str]]]:
    """The leaves of both, without leaves that one of the formats can't store."""
    first, second = _below_params(a.specs, b.specs), _below_params(b.specs, a.specs)
    why = {**a.lacks, **b.lacks}
    skipped: dict[str, list[str]] = {}
    for path in {**first, **second}:
        if kind_of(path) in why:
            skipped.setdefault(why[kind_of(path)], []).append(join_path(path))
    return _without(first, why), _without(second, why), skipped


def _without(flat: Flat, kinds: Mapping[str, str]) -> Flat:
    return {path: leaf for path, leaf in flat.items() if kind_of(path) not in kinds}


def _below_params(flat: Flat, other: Flat) -> Flat:
    """Adds ``params`` above the leaves of a module's state, if the other file has it."""
    if any(kind_of(path) for path in flat) or not any(path[0] == "params" for path in other):
        return flat
    return {("params", *path): leaf for path, leaf in flat.items()}


def _unlike(kind: str, both: Mapping[Path, Any], paths: Iterable[Path]) -> Iterator[DifferenceRow]:
    """Leaves whose shapes differ, or whose shapes are the same and whose dtypes differ."""
    for path in paths:
        first, second = both[path]
        if ("shape" if np.shape(first) != np.shape(second) else "dtype") == kind:
            yield DifferenceRow(kind, join_path(path), spec_text(first), spec_text(second))


def _values(a: Contents, b: Contents, names: Mapping[Path, tuple[Any, Any]]) -> Iterator[DifferenceRow]:
    """Leaves whose values differ; reads a few leaves at a time, and large ones in parts."""
    with a.reading(), b.reading():
        for group in groups({path: leaf for path, (leaf, _) in names.items()}, a.packed()):
            for path, largest in _of_group(a, b, group, names):
                if largest is not None:
                    yield DifferenceRow("value", join_path(path), largest=largest)


def _of_group(
    a: Contents, b: Contents, group: list[Path], names: Mapping[Path, tuple[Any, Any]]
) -> Iterator[tuple[Path, float | str | None]]:
    if is_large(names[group[0]][0]):  # it comes alone
        path = group[0]
        pieces = together(a.parts(_own(a, path)), b.parts(_own(b, path)), _TOGETHER)
        yield path, _greatest(_largest(x, y) for x, y in pieces)
        return
    first, second = (side.some([_own(side, path) for path in group]) for side in (a, b))
    for path in group:
        x, y = first[_own(a, path)], second[_own(b, path)]
        parts = slices(np.shape(x), _TOGETHER)
        yield path, _greatest(_largest(*(leaf[part] if part else leaf for leaf in (x, y))) for part in parts)


def _own(contents: Contents, path: Path) -> Path:
    """The path of a leaf in its own file, which may have no ``params`` above it."""
    return path if path in contents.specs else path[1:]


_TOGETHER = 1 << 18  # elements that are compared at a time: as float64 they take more than the leaf


def _greatest(found: Iterable[float | str | None]) -> float | str | None:
    """The largest of several differences; text if one is not a number."""
    differing = [one for one in found if one is not None]
    texts = [one for one in differing if isinstance(one, str)]
    return texts[0] if texts else max(differing, default=None)


def _largest(a: Any, b: Any) -> float | str | None:
    """The largest absolute difference; None for equal values, text if it is not a number."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind in "US":
        return None if a == b else "another text"
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    wide_x, wide_y = x.astype(wide), y.astype(wide)
    unlike = ~((x == y) | (np.isnan(wide_x) & np.isnan(wide_y)))
    if not unlike.any():
        return None
    with np.errstate(invalid="ignore"):
        found = float(np.abs(wide_x[unlike] - wide_y[unlike]).max())
    return found if np.isfinite(found) else "not a finite number"
