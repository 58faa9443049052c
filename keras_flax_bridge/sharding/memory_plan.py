"""Estimates the memory of a model on each device of a mesh; nothing is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from keras_flax_bridge.keras_internals import PARAM
from keras_flax_bridge.sharding.rules import axis_parts, layouts
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.trees import SLOT, kind_of
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path
from keras_flax_bridge.tree.reports import Line, Table, as_json

Rules = list[tuple[str, PartitionSpec]]
_GB = 1e9
_AVERAGES = ("model_variables_moving_average", "ema")


class LayoutRow(NamedTuple):
    """Bytes on each device under one layout.

    Attributes:
        layout: how the weights are sharded.
        params: bytes of the trainable weights.
        slots: bytes of the optimizer slots.
        averages: bytes of the moving averages of the weights.
        other: bytes of all other leaves.
    """

    layout: str
    params: int
    slots: int
    averages: int
    other: int

    @property
    def per_device(self) -> int:
        """Bytes of all leaves on each device."""
        return self.params + self.slots + self.averages + self.other


class MemoryPlan(NamedTuple):
    """The memory of a state on each device of a mesh, under several layouts.

    Attributes:
        axes: sizes of the mesh axes by name.
        layouts: one row for each layout.
        checkpoint: bytes of a checkpoint.
        bandwidth: of the storage, in GB per second.

    Example:
        >>> row = LayoutRow("replicated: data parallel", 10**9, 2 * 10**9, 0, 0)
        >>> print(MemoryPlan({"data": 8}, (row,), 3 * 10**9, 1.5))
        GB on each device of {'data': 8}
        layout                     params  slots  averages  other  total
        replicated: data parallel   1.000  2.000     0.000  0.000  3.000
        a checkpoint: 3.0 GB, 2 s at 1.5 GB/s
    """

    axes: dict[str, int]
    layouts: tuple[LayoutRow, ...]
    checkpoint: int
    bandwidth: float

    @property
    def rows(self) -> tuple[LayoutRow, ...]:
        """One row for each layout: `layouts`."""
        return self.layouts

    @property
    def ok(self) -> bool:
        """True: a plan only lists."""
        return True

    @property
    def seconds(self) -> float:
        """The time to write or read a checkpoint at the given bandwidth."""
        return self.checkpoint / _GB / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types; sizes are in bytes."""
        rows = [{**as_json(row), "per_device": row.per_device} for row in self.rows]
        checkpoint = {"bytes": self.checkpoint, "seconds": as_json(self.seconds)}
        return {"ok": self.ok, "axes": as_json(self.axes), "rows": rows, "checkpoint": checkpoint}

    def __str__(self) -> str:
        return str(self._table())

    def _table(self) -> Table:
        kinds = LayoutRow._fields[1:]
        lines = tuple(Line((row.layout, *map(_gigabytes, (*row[1:], row.per_device)))) for row in self.rows)
        size = f"{self.checkpoint / _GB:.1f} GB, {self.seconds:.0f} s at {self.bandwidth} GB/s"
        title = f"GB on each device of {self.axes}"
        right = {*kinds, "total"}
        return Table(title, ("layout", *kinds, "total"), lines, (f"a checkpoint: {size}",), right)

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def memory_plan(state: Any, axes: Mapping[str, int], bandwidth: float = 1.0) -> MemoryPlan:
    """Estimates the memory of an abstract state under several layouts.

    Args:
        state: an abstract `TrainState`.
        axes: sizes of the mesh axes by name.
        bandwidth: of the storage, in GB per second.

    Returns:
        A report, which prints as a table.
    """
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    flat = flatten_tree(state)
    rows = (_row(name, flat, layouts(state, mesh, rules, {}), axes) for name, rules in _rules(flat, axes))
    return MemoryPlan(dict(axes), tuple(rows), sum(map(size_of, flat.values())), bandwidth)


def _gigabytes(size: int) -> str:
    return f"{size / _GB:.3f}"


def _rules(flat: Flat, axes: Mapping[str, int]) -> Iterable[tuple[str, Rules]]:
    weights = {path: leaf.shape for path, leaf in flat.items() if kind_of(path) == PARAM}
    first, *others = axes
    yield "replicated: data parallel", []
    yield f"weights split over {first}: FSDP", _each(weights, [(first,)], axes)
    if others:
        everything = tuple(axes)
        yield f"weights split over {' and '.join(everything)}: FSDP", _each(weights, [everything], axes)
        pairs = [(axis,) for axis in (*others, first)]
        yield f"one axis split over {', '.join(others)}, another over {first}", _each(weights, pairs, axes)


def _each(weights: Mapping[Path, Any], splits: Sequence[tuple[str, ...]], axes: Mapping[str, int]) -> Rules:
    """One rule for each weight, which splits its largest divisible axes in turn."""
    found = ((path, _spec(shape, splits, axes)) for path, shape in weights.items())
    return [(f"^{re.escape(join_path(path))}$", spec) for path, spec in found if any(spec)]


def _spec(
    shape: tuple[int, ...], splits: Sequence[tuple[str, ...]], axes: Mapping[str, int]
) -> PartitionSpec:
    entries: list[Any] = [None] * len(shape)
    for split in splits:
        parts = math.prod(axes[name] for name in split)
        free = [i for i, size in enumerate(shape) if entries[i] is None and size % parts == 0]
        if free:
            entries[max(free, key=lambda i: shape[i])] = split if len(split) > 1 else split[0]
    return PartitionSpec(*entries)


def _row(name: str, flat: Flat, found: Mapping[Path, Any], axes: Mapping[str, int]) -> LayoutRow:
    per_device = dict.fromkeys(LayoutRow._fields[1:], 0)
    for path, leaf in flat.items():
        per_device[_kind(path)] += size_of(leaf) // math.prod(axis_parts(found[path].spec, axes))
    return LayoutRow(name, **per_device)


def _kind(path: Path) -> str:
    kind = kind_of(path)
    if kind == SLOT:
        return "averages" if any(name in _AVERAGES for name in path) else "slots"
    return "params" if kind == PARAM else "other"


def abstract_state(build: Callable[[], Any], optimizer: Any) -> Any:
    """The abstract state of a model, created on the CPU."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return TrainState.abstract(build, optimizer=optimizer)
