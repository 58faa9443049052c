"""Reports the effect of sharding rules on a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh, PartitionSpec

from keras_flax_bridge.errors import printed
from keras_flax_bridge.sharding.placement import keras_names
from keras_flax_bridge.sharding.rules import Layout, Rules, axis_parts, layouts
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Path, flatten_tree, join_path
from keras_flax_bridge.tree.reports import Table, as_json, table_of
from keras_flax_bridge.tree.types import PyTree


@words.doors()
class RuleReport(NamedTuple):
    """The leaves that one rule matched.

    Attributes:
        rule: the regular expression; ``everywhere`` for leaves that no rule matched.
        spec: how the leaves are sharded.
        leaves: how many.
        example: the path of one.
        shards: the number of parts of each leaf.
        size: bytes of all of them.
        per_device: their bytes on each device.

    Example:
        >>> row = RuleReport("kernel", PartitionSpec("data"), 2, "params/dense/kernel", 8, 1024, 128)
        >>> row.size // row.shards == row.per_device
        True
    """

    rule: str
    spec: PartitionSpec
    leaves: int
    example: str
    shards: int
    size: int
    per_device: int


@words.doors()
class ShardingReport(NamedTuple):
    """The leaves that each rule matched; printed, a table.

    Attributes:
        devices: the number of devices of the mesh.
        rules: one row for each rule and spec.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec as P
        >>> mesh = Mesh(jax.devices()[:1], ("model",))
        >>> weights = {"params": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
        >>> print(sharding_report(weights, mesh, [("kernel", P(None, "model"))]))
        rule        spec             leaves  shards        bytes   per device  such as
        everywhere  ()                    1       1           32           32  params/bias
        kernel      (None, 'model')       1       1          128          128  params/kernel
        2 leaves on 1 devices: 160 bytes, 160 on each device
    """

    devices: int
    rules: tuple[RuleReport, ...]

    @property
    def rows(self) -> tuple[RuleReport, ...]:
        """One row for each rule and spec: `rules`."""
        return self.rules

    @property
    def ok(self) -> bool:
        """True: `sharding_report` raises for a rule that matches no leaf, or whose spec doesn't fit one."""
        return True

    @property
    def per_device(self) -> int:
        """Bytes on each device."""
        return sum(row.per_device for row in self.rules)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types; a spec is a list of axis names and nulls."""
        rows = [as_json(row._replace(spec=tuple(row.spec))) for row in self.rules]  # type: ignore[arg-type]
        return {"ok": self.ok, "devices": self.devices, "per_device": self.per_device, "rows": rows}

    def __str__(self) -> str:
        specs = [str(tuple(row.spec)) for row in self.rules]
        wide, wider = max([10, *(len(row.rule) for row in self.rules)]), max([4, *map(len, specs)])
        head = f"{'rule':{wide}}  {'spec':{wider}}  leaves  shards        bytes   per device  such as"
        lines = [
            f"{row.rule:{wide}}  {spec:{wider}}  {row.leaves:6}  {row.shards:6}  "
            f"{row.size:11}  {row.per_device:11}  {row.example}"
            for row, spec in zip(self.rules, specs, strict=True)
        ]
        return printed([head, *lines, self._total()])

    def _total(self) -> str:
        leaves, size = (sum(getattr(row, name) for row in self.rules) for name in ("leaves", "size"))
        return f"{leaves} leaves on {self.devices} devices: {size} bytes, {self.per_device} on each device"

    def _table(self) -> Table:
        rows = [(*row[:1], str(tuple(row.spec)), *row[2:]) for row in self.rules]
        return table_of("sharding", RuleReport._fields, rows, [self._total()])

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


@words.door
def sharding_report(state: PyTree, mesh: Mesh, rules: Rules) -> ShardingReport:
    """Reports which leaves of a state each rule matches, with shards and bytes.

    Args:
        state: a `TrainState`, concrete or abstract, or a tree of weights.
        mesh: the devices.
        rules: see `shardings_for`.

    Returns:
        A report, which prints as a table.

    Raises:
        StructureMismatchError: as `shardings_for`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec as P
        >>> weights = {"params": {"kernel": jnp.zeros((4, 8))}}
        >>> sharding_report(weights, Mesh(jax.devices()[:1], ("model",)), [("kernel", P())]).per_device
        128
    """
    found = layouts(state, mesh, rules, keras_names(state))
    flat = flatten_tree(state)
    groups: dict[Layout, list[Path]] = {}
    for path in sorted(found, key=lambda path: str(found[path].rule)):
        groups.setdefault(found[path], []).append(path)
    rows = [_row(layout, {path: flat[path] for path in paths}, mesh) for layout, paths in groups.items()]
    return ShardingReport(mesh.size, tuple(rows))


def _row(layout: Layout, leaves: Mapping[Path, Any], mesh: Mesh) -> RuleReport:
    shards = math.prod(axis_parts(layout.spec, mesh.shape))
    size = sum(map(size_of, leaves.values()))
    return RuleReport(
        layout.rule, layout.spec, len(leaves), join_path(next(iter(leaves))), shards, size, size // shards
    )
