"""What differs between what lies in two places: paths, shapes, dtypes, values."""

from __future__ import annotations

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

KINDS = ("missing", "unexpected", "shape", "dtype", "value")
Row = dict[str, Any]


class FileDifference(NamedTuple):
    """What differs, leaf by leaf.

    Attributes:
        a: the first place.
        b: the second.
        compared: how many leaves both have.
        rows: by kind of difference; ``missing`` is in the first alone, ``unexpected`` in the second alone.
        skipped: paths that weren't compared, by the reason.
    """

    a: str
    b: str
    compared: int
    rows: dict[str, list[Row]]
    skipped: dict[str, list[str]]

    def __bool__(self) -> bool:
        return any(self.rows.values())

    def to_json(self) -> dict[str, Any]:
        """The difference as plain JSON types."""
        head = {"a": self.a, "b": self.b, "same": not self, "compared": self.compared}
        return {**head, **self.rows, "not_compared": self.skipped}

    def __str__(self) -> str:
        lines = [_line(kind, row) for kind, rows in self.rows.items() for row in rows]
        counts = [f"{len(rows)} {kind}" for kind, rows in self.rows.items() if rows]
        said = ", ".join(counts) or "no difference"
        notes = [f"not compared: {listed(names)} ({why})" for why, names in self.skipped.items()]
        return printed([*lines, *notes, f"{counted(self.compared, 'leaf')} compared: {said}"])


def _line(kind: str, row: Row) -> str:
    said = row.get("leaf") or (f"{row['a']} and {row['b']}" if "a" in row else _number(row["largest"]))
    return f"{kind:<10}  {row['path']}  {said}"


def _number(largest: float | str) -> str:
    return largest if isinstance(largest, str) else f"{largest:.6g}"


def difference(a: Contents, b: Contents, *, values: bool = False) -> FileDifference:
    """Compares two places.

    Args:
        a: the first.
        b: the second.
        values: whether values are compared too; they are read only then.
    """
    first, second, skipped = _comparable(a, b)
    diff = diff_trees(second, first)
    both = {path: (leaf, second[path]) for path, leaf in first.items() if path in second}
    alike = [path for path in both if path not in diff.mismatched]
    rows: dict[str, list[Row]] = {
        "missing": _alone(diff.missing),
        "unexpected": _alone(diff.unexpected),
        "shape": _unlike(both, diff.mismatched, by_shape=True),
        "dtype": _unlike(both, diff.mismatched, by_shape=False),
        "value": list(_values(a, b, {path: both[path] for path in alike})) if values else [],
    }
    return FileDifference(str(a.path), str(b.path), len(both), rows, skipped)


def _comparable(a: Contents, b: Contents) -> tuple[Flat, Flat, dict[str, list[str]]]:
    """The leaves of both, without those that one of them can't hold."""
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
    """The leaves of a module's state, which has no ``params`` above it, where the other side has."""
    if any(kind_of(path) for path in flat) or not any(path[0] == "params" for path in other):
        return flat
    return {("params", *path): leaf for path, leaf in flat.items()}


def _alone(flat: Mapping[Path, Any]) -> list[Row]:
    return [{"path": join_path(path), "leaf": spec_text(leaf)} for path, leaf in flat.items()]


def _unlike(both: Mapping[Path, Any], paths: Iterable[Path], *, by_shape: bool) -> list[Row]:
    """Leaves of another shape, or of the same shape and another dtype."""
    return [
        {"path": join_path(path), "a": spec_text(both[path][0]), "b": spec_text(both[path][1])}
        for path in paths
        if (np.shape(both[path][0]) != np.shape(both[path][1])) == by_shape
    ]


def _values(a: Contents, b: Contents, names: Mapping[Path, tuple[Any, Any]]) -> Iterator[Row]:
    """Leaves whose values differ; some are read at a time, of a large one some elements."""
    with a.reading(), b.reading():
        for group in groups({path: leaf for path, (leaf, _) in names.items()}, a.packed()):
            for path, largest in _of_group(a, b, group, names):
                if largest is not None:
                    yield {"path": join_path(path), "largest": largest}


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
    """The name of a leaf on one side: there may be no ``params`` above it."""
    return path if path in contents.specs else path[1:]


_TOGETHER = 1 << 18  # elements that are compared at a time: as float64 they take more than the leaf


def _greatest(found: Iterable[float | str | None]) -> float | str | None:
    """The largest of the differences of parts; text where one has no number."""
    differing = [one for one in found if one is not None]
    texts = [one for one in differing if isinstance(one, str)]
    return texts[0] if texts else max(differing, default=None)


def _largest(a: Any, b: Any) -> float | str | None:
    """The largest absolute difference; None for the same values, text where there is no number for it."""
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
