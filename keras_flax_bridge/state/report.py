"""Leaves as rows of a table: path, kind, shape, dtype, size and sharding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state.trees import METRIC as METRIC
from keras_flax_bridge.state.trees import SLOT as SLOT
from keras_flax_bridge.state.trees import STEP as STEP
from keras_flax_bridge.state.trees import kind_of as kind_of
from keras_flax_bridge.state.trees import place_of
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path, split_path
from keras_flax_bridge.tree.reports import Line, Table
from keras_flax_bridge.tree.types import PyTree

COLUMNS = ("path", "kind", "dtype", "shape", "bytes", "sharding")


@words.doors()
class LeafRow(NamedTuple):
    """One leaf.

    Attributes:
        path: its path, such as ``params/dense/kernel``.
        kind: ``param``, ``slot``, ``batch_stat``, ``seed``, ``metric``, ``step``, ``frozen``, ``other``;
            ``""`` if it isn't known.
        dtype: its dtype; for a leaf that is not an array, its type.
        shape: its shape.
        size: its bytes.
        sharding: how it is sharded over devices; ``""`` if it isn't known.

    Example:
        >>> LeafRow("params/dense/kernel", "param", "float32", (4, 2), 32, "").collection
        'params'
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    sharding: str

    @property
    def collection(self) -> str:
        """The first name of the path."""
        return split_path(self.path)[0]


@words.doors()
class StateReport(NamedTuple):
    """The leaves of a state or a checkpoint; printed, a table by collection, with totals.

    Attributes:
        title: the source of the leaves.
        rows: one for each leaf.
        notes: remarks, such as leaves that the file does not store.

    Example:
        >>> report = StateReport("weights", (LeafRow("params/w", "param", "float32", (2, 3), 24, ""),))
        >>> report.totals()
        {'params': (1, 24)}
    """

    title: str
    rows: tuple[LeafRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True: a list of leaves has nothing that could be wrong."""
        return True

    def totals(self) -> dict[str, tuple[int, int]]:
        """The numbers of leaves and bytes of each collection."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.rows:
            leaves, size = found.get(row.collection, (0, 0))
            found[row.collection] = leaves + 1, size + row.size
        return found

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types: the leaves, totals of each collection and of all, the notes."""
        totals = {name: {"leaves": n, "bytes": size} for name, (n, size) in self.totals().items()}
        leaves = [
            {"path": row.path, "kind": row.kind, "dtype": row.dtype, "shape": list(row.shape)}
            | {"bytes": row.size, "sharding": row.sharding}
            for row in self.rows
        ]
        whole = {"leaves": len(self.rows), "bytes": sum(row.size for row in self.rows)}
        found = {"leaves": leaves, "collections": totals, "total": whole, "notes": list(self.notes)}
        return {"title": self.title, "ok": self.ok, **found}

    def _table(self) -> Table:
        columns = COLUMNS if any(row.sharding for row in self.rows) else COLUMNS[:-1]
        lines = (line._replace(cells=line.cells[: len(columns)]) for line in self._lines())
        return Table(self.title, columns, tuple(lines), self.notes, {"shape", "bytes"})

    def _lines(self) -> Iterator[Line]:
        """Every line of the table: the leaves of each collection, its total, all together."""
        for collection, (leaves, size) in self.totals().items():
            yield from (_line(row) for row in self.rows if row.collection == collection)
            yield _total(collection, leaves, size)
        yield _total("all", len(self.rows), sum(row.size for row in self.rows))

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def _line(row: LeafRow) -> Line:
    shape = "x".join(map(str, row.shape)) or "scalar"
    return Line((f"  {row.path}", row.kind, row.dtype, shape, f"{row.size:,}", row.sharding))


def _total(what: str, leaves: int, size: int) -> Line:
    return Line((f"{what}: {counted(leaves, 'leaf')}", "", "", "", f"{size:,}", ""), is_total=True)


def counted(number: int, what: str) -> str:
    """A count and a noun, in the singular or the plural.

    >>> counted(1, "leaf"), counted(2, "leaf"), counted(0, "metric")
    ('1 leaf', '2 leaves', '0 metrics')
    """
    plural = {"leaf": "leaves"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"


def rows(flat: Flat, shardings: Mapping[Path, str] | None = None) -> tuple[LeafRow, ...]:
    """A row for every leaf, concrete or abstract.

    Args:
        flat: the leaves.
        shardings: how they are sharded, as text; None to read it from the leaves.
    """
    if shardings is None:  # else the leaves are not asked: Orbax's own make a mesh of what a file says
        shardings = {p: described(getattr(leaf, "sharding", None)) for p, leaf in flat.items()}
    made = (
        LeafRow(
            join_path(path),
            kind_of(path),
            _dtype(leaf),
            tuple(getattr(leaf, "shape", ())),
            0 if isinstance(leaf, str) else size_of(leaf),
            shardings.get(path, ""),
        )
        for path, leaf in flat.items()
    )
    return tuple(sorted(made, key=lambda row: place_of(row.collection)))


def _dtype(leaf: Any) -> str:
    return dtype_name(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__


def described(sharding: Any) -> str:
    """A sharding as text; empty for a single device."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return ""
    return in_words(tuple(sharding.spec), sharding.mesh.shape)


def in_words(spec: Sequence[Any], axes: Mapping[str, int]) -> str:
    """The spec of a leaf on a mesh.

    >>> in_words(("data", None), {"data": 8})
    "('data', None) of data=8"
    """
    mesh = ", ".join(f"{name}={size}" for name, size in axes.items())
    return f"{tuple(spec)} of {mesh}"


@words.door
def report(state: PyTree) -> StateReport:
    """Lists a state leaf by leaf: kind, dtype, shape, bytes, sharding.

    Args:
        state: a `TrainState`, concrete or abstract, or a part of one; any tree of arrays.

    Returns:
        A report, which prints as a table by collection, with totals; in a notebook too.

    Raises:
        StructureMismatchError: if `state` is not a tree of leaves.

    Example:
        >>> import keras
        >>> from keras_flax_bridge import TrainState
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> print(report(TrainState.from_keras(model).params))
        dict
        path             kind  dtype    shape  bytes
          dense/bias           float32      2      8
          dense/kernel         float32    4x2     32
        dense: 2 leaves                           40
        all: 2 leaves                             40
    """
    flat = flatten_tree(state)
    if () in flat:
        raise StructureMismatchError(
            "state",
            got=f"a {type(state).__name__}",
            expected="a TrainState, or a tree of arrays",
            fix="Pass TrainState.from_keras(model) for a model, nnx.state(module) for a module.",
        )
    return StateReport(type(state).__name__, rows(flat))


def listed(items: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many more there are.

    >>> listed("abcde")
    'a, b, c and 2 more'
    """
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
