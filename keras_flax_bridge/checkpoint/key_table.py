"""The table of a model's keys: what a checkpoint calls a variable, and what Keras calls it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import ArgumentError, StructureMismatchError, printable
from keras_flax_bridge.state.report import counted
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.state.trees import WEIGHTS, kind_of
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.paths import join_path
from keras_flax_bridge.tree.reports import Line, Table


@words.doors()
class KeyRow(NamedTuple):
    """A variable of a model.

    Attributes:
        key: its structural key, the path of its leaf in a state and in a checkpoint:
            ``params/dense/kernel``.
        path: what Keras calls it, `variable.path`: ``dense_3/kernel``.
        shape: its shape.
        dtype: its dtype.
        kind: ``param``, ``frozen``, ``batch_stat``, ``seed``, ``other``, ``slot``, ``metric``.

    Example:
        >>> KeyRow("params/dense/kernel", "dense_3/kernel", (4, 2), "float32", "param").path
        'dense_3/kernel'
    """

    key: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    kind: str


@words.doors()
class KeyReport:
    """The variables of a model, in its order; printed, a table. Its items and its length are those of `rows`.

    Args:
        title: the name of the model.
        rows: one for each variable.

    Example:
        >>> row = KeyRow("params/dense/kernel", "dense_3/kernel", (4, 2), "float32", "param")
        >>> table = KeyReport("model", [row])
        >>> table["params/dense/kernel"].path, table["dense_3/kernel"].shape
        ('dense_3/kernel', (4, 2))
        >>> {row.path: row.key for row in table}
        {'dense_3/kernel': 'params/dense/kernel'}
    """

    def __init__(self, title: str, rows: Iterable[KeyRow]):
        self.title = title
        self.rows: tuple[KeyRow, ...] = tuple(rows)

    @property
    def ok(self) -> bool:
        """True: a list of variables has nothing that could be wrong."""
        return True

    def __iter__(self) -> Iterator[KeyRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str | int) -> KeyRow:
        """The row of a key, or of a path that only one variable has; or the row of a number."""
        if isinstance(name, int):
            return self.rows[name]
        found = [row for row in self.rows if row.key == name] or [
            row for row in self.rows if row.path == name
        ]
        if len(found) == 1:
            return found[0]
        raise StructureMismatchError(
            self.title,
            got=f"{name!r}, which {counted(len(found), 'variable')} has",
            expected="the key or the path of one variable",
            fix="Print the table: it lists all of them.",
        )

    def to_json(self) -> dict[str, Any]:
        """The table as JSON types."""
        rows = [{**row._asdict(), "shape": list(row.shape)} for row in self.rows]
        return {"title": self.title, "ok": self.ok, "variables": rows}

    def _table(self) -> Table:
        lines = (
            Line((row.key, row.path, "x".join(map(str, row.shape)) or "scalar", row.dtype, row.kind))
            for row in self.rows
        )
        return Table(self.title, KeyRow._fields, tuple(lines), right={"shape"})

    def __str__(self) -> str:
        return str(self._table())

    def __repr__(self) -> str:
        return f"KeyReport of {printable(self.title)}: {counted(len(self.rows), 'variable')}"

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


@words.door
def keys(model: keras.Model | keras.layers.Layer) -> KeyReport:
    """Lists the variables of a Keras model: structural key, `variable.path`, shape, dtype and kind.

    The key is the path of the leaf in a state and in a checkpoint, which `include=` and `rename=` of
    `restore` take. Keras's own path holds names that depend on what was built before in the process;
    files that are keyed by it are read with ``restore(..., keys="path")``.

    Args:
        model: a built model or layer. Of a compiled one the slots of the optimizer, and the metrics that
            saw data, are listed too.

    Returns:
        A `KeyReport`: iterate over it for rows, print it for a table, and index it by key or path.

    Raises:
        ArgumentError: if `model` is no Keras model or layer.
        NotBuiltError: if it isn't built.

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2, name="head")
        >>> layer.build((None, 4))
        >>> print(keys(layer))
        head
        key            path         shape  dtype    kind
        params/kernel  head/kernel    4x2  float32  param
        params/bias    head/bias        2  float32  param
    """
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(
            "model",
            got=f"a {type(model).__name__}",
            expected="a built Keras model or layer",
            fix="Pass the model; of a state or a checkpoint kfb.report and kfb.restore list the leaves.",
        )
    rows = [
        _row(tree, entry, keras_internals.variable_spec(entry.variable))
        for tree, entries in receivers(model).items()
        for entry in entries
    ]
    return KeyReport(model.name, rows)


def _row(tree: str, entry: Any, spec: Any) -> KeyRow:
    key = (tree, *entry.path)
    kind = entry.kind if tree in WEIGHTS else kind_of(key)
    return KeyRow(join_path(key), entry.variable.path, spec.shape, dtype_name(spec.dtype), kind)
