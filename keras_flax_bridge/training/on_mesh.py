"""Steps on a mesh: places the state by the rules, and splits batches over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals.batch_arrays import as_arrays
from keras_flax_bridge.keras_internals.batches import check_leaves
from keras_flax_bridge.sharding.placement import shardings_for
from keras_flax_bridge.sharding.rules import Rules, automatic, axis_parts
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.trees import of_state
from keras_flax_bridge.training.keras_step import Fields, fields_of
from keras_flax_bridge.training.kinds import Kind
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.leaves import placed, require_values
from keras_flax_bridge.tree.paths import flatten_tree, join_path


class Meshed:
    """Places states and batches for a step.

    Args:
        kind: of the step.
        mesh: the devices.
        rules: how the state is sharded; see `shardings_for`.
        batch_spec: how a batch is split; None for its rows over the mesh's first axis.
        steps_per_call: for more than one, batches have a leading axis that is not split.
    """

    def __init__(
        self,
        kind: Kind,
        mesh: Mesh,
        rules: Rules,
        batch_spec: PartitionSpec | None,
        *,
        steps_per_call: int = 1,
    ):
        mesh = automatic(mesh)
        self._mesh, self._rules = mesh, rules
        rows = PartitionSpec(mesh.axis_names[0]) if batch_spec is None else batch_spec
        spec = rows if steps_per_call == 1 else PartitionSpec(None, *rows)
        self._batches = NamedSharding(mesh, spec)
        self._leading = steps_per_call > 1
        self.take(kind)

    def take(self, kind: Kind) -> None:
        """Places the trees that such a step takes from now on."""
        self._kind = kind
        self._names = ("step", *kind.takes) if kind.trains else kind.takes
        self._layouts: dict[Any, Fields] = {}  # by the tree of the fields

    def state(self, state: TrainState, *, known: bool) -> TrainState:
        """The state on the mesh; not moved if it is already there.

        Raises:
            OwnershipError: if it was donated; XLA ends the process if several devices get such a buffer.
        """
        if known and self._kind.trains:  # a step takes over the count with the leaves
            require_values({("state", "step"): state.step})
            return state
        fields = fields_of(state, self._names)
        leaves, tree = jax.tree.flatten(fields)
        if [getattr(leaf, "sharding", None) for leaf in leaves] == jax.tree.leaves(self._layout(state, tree)):
            require_values({("state", "step"): state.step})
            if any(leaf.is_deleted() for leaf in leaves):
                require_values(flatten_tree({"state": fields}))
            return state
        require_values(flatten_tree(state))
        put: TrainState = jax.tree.map(placed, state, shardings_for(state, self._mesh, self._rules))
        return put

    def out_shardings(self, state: TrainState) -> tuple[Any, ...]:
        """The shardings of a step's count, leaves and logs for such states; XLA chooses those of outputs."""
        layout = self._layout(state, jax.tree.structure(fields_of(state, self._names)))
        given = jax.tree.leaves({name: layout[name] for name in self._kind.gives if name in layout})
        logs = NamedSharding(self._mesh, PartitionSpec()) if self._kind.is_compiled else None
        return layout.get("step"), given, logs

    def _layout(self, state: TrainState, tree: Any) -> Fields:
        """The shardings of the fields that the step takes; `tree` is theirs."""
        if tree not in self._layouts:
            wanted = shardings_for(state, self._mesh, self._rules)
            self._layouts[tree] = of_state(wanted, self._names)
        return self._layouts[tree]

    def batch(self, batch: Any) -> Any:
        """Places a batch on the mesh; with several processes, it is assembled from the rows of each.

        In one process rows need not divide over the devices: such leaves are placed whole, and the compiled
        step spreads them.
        """
        if jax.process_count() == 1:
            try:
                return jax.device_put(batch, self._batches)
            except (TypeError, ValueError):
                batch = as_arrays(batch)
                check_leaves(batch)
                return jax.device_put(batch, jax.tree.map(self._even, batch))
        batch = as_arrays(batch)
        self._require_rows(batch)
        make: Callable[..., jax.Array] = jax.make_array_from_process_local_data
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else make(self._batches, np.asarray(x)), batch
        )

    def spread(self, batch: Any) -> Any:
        """A traced batch, with rows on all devices also where their number doesn't divide.

        XLA pads such arrays, and leaves the padding out of all that is computed of them.
        """
        return jax.tree.map(self._spread, batch)

    def _spread(self, leaf: Any) -> Any:
        uneven = self._sharding(leaf, lambda size, parts: size >= parts or size % parts == 0)
        return leaf if uneven == self._even(leaf) else jax.lax.with_sharding_constraint(leaf, uneven)

    def _even(self, leaf: Any) -> NamedSharding:
        """How a leaf can be placed: only axes that divide are split."""
        return self._sharding(leaf, lambda size, parts: size % parts == 0)

    def _sharding(self, leaf: Any, is_split: Callable[[int, int], bool]) -> NamedSharding:
        spec, parts = self._batches.spec, axis_parts(self._batches.spec, self._mesh.shape)
        axes = zip(np.shape(leaf), spec, parts, strict=False)
        return NamedSharding(
            self._mesh, PartitionSpec(*(axis if is_split(size, part) else None for size, axis, part in axes))
        )

    def _require_rows(self, batch: Any) -> None:
        """Checks that the rows of a batch divide over the devices.

        Raises:
            StructureMismatchError: naming the leaves that can't be split.
        """
        spec, shape = self._batches.spec, self._mesh.shape
        parts = axis_parts(spec, shape)
        if parts and not self._leading:
            parts[0] = max(parts[0] // jax.process_count(), 1)  # each process passes its own rows
        wrong = [
            f"  {join_path(path) or 'batch'}  {spec_text(leaf)}"
            for path, leaf in flatten_tree(batch).items()
            if len(np.shape(leaf)) < len(parts)
            or any(size % part for size, part in zip(np.shape(leaf), parts, strict=False))
        ]
        if wrong:
            raise StructureMismatchError(
                "batch",
                got="leaves that can't be split over the mesh",
                expected=f"axes that are multiples of {tuple(parts)}",
                report=wrong,
                fix=f"The mesh is {dict(shape)}, batch_spec {tuple(spec)}. Drop the last, smaller batch "
                "of an epoch, or choose another batch size.",
            )
