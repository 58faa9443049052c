"""A step on a mesh: the state goes in and comes out as the rules say, batches are split over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_flax_bridge import _layouts, _paths
from keras_flax_bridge._layouts import Rules, automatic
from keras_flax_bridge._leaves import placed, require_values
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.sharding import shardings_for
from keras_flax_bridge.state import TrainState


class Meshed:
    """Puts states and batches where a step wants them, and compiles the step so that the state stays there.

    Args:
        run: the pure step, from fields of a state and a batch to the same fields and logs.
        names: the fields.
        mesh: the devices.
        rules: how the state lies; see `shardings_for`.
        batch_spec: how a batch is split; None for its rows over the mesh's first axis.
        steps_per_call: for more than one, batches have a leading axis that is not split.
        donate: whether the step takes over the state's buffers.
    """

    def __init__(
        self,
        run: Callable,
        names: tuple[str, ...],
        mesh: Mesh,
        rules: Rules,
        batch_spec: PartitionSpec | None,
        *,
        steps_per_call: int,
        donate: bool,
    ):
        mesh = automatic(mesh)
        self._run, self._names, self._mesh, self._rules = run, names, mesh, rules
        self._donated = 0 if donate else ()
        rows = PartitionSpec(mesh.axis_names[0]) if batch_spec is None else batch_spec
        spec = rows if steps_per_call == 1 else PartitionSpec(None, *rows)
        self._batches = NamedSharding(mesh, spec)
        self._leading = steps_per_call > 1
        self._tree: Any = jax.tree.structure(None)  # of the state that the step was compiled for
        self._wanted: list[NamedSharding] = []
        self.step: Callable = run

    def state(self, state: TrainState) -> TrainState:
        """The state on the mesh; nothing is moved if it is there already."""
        fields = {name: getattr(state, name) for name in self._names}
        leaves, tree = jax.tree.flatten(fields)
        if tree != self._tree:
            self._compile(state, tree)
        if [getattr(leaf, "sharding", None) for leaf in leaves] == self._wanted:
            return state
        require_values(_paths.flatten(state))
        return jax.tree.map(placed, state, self._everything)

    def _compile(self, state: TrainState, tree: Any) -> None:
        self._everything = shardings_for(state, self._mesh, self._rules)
        own = {name: getattr(self._everything, name) for name in self._names}
        logs = NamedSharding(self._mesh, PartitionSpec())
        self._tree, self._wanted = tree, jax.tree.leaves(own)
        self.step = jax.jit(self._run, donate_argnums=self._donated, out_shardings=(own, logs))

    def batch(self, batch: Any) -> Any:
        """A batch on the mesh; with several processes, made of the rows that each of them has."""
        self._require_rows(batch)
        if jax.process_count() == 1:
            return jax.device_put(batch, self._batches)
        make = jax.make_array_from_process_local_data
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else make(self._batches, np.asarray(x)), batch
        )

    def _require_rows(self, batch: Any) -> None:
        """Checks that all rows of a batch find a device.

        Raises:
            StructureMismatchError: naming the leaves that can't be split.
        """
        spec, shape = self._batches.spec, self._mesh.shape
        parts = _layouts.parts(spec, shape)
        if parts and not self._leading:
            parts[0] = max(parts[0] // jax.process_count(), 1)  # each process passes its own rows
        wrong = [
            f"  {_paths.join(path) or 'batch'}  {_paths.spec(leaf)}"
            for path, leaf in _paths.flatten(batch).items()
            if len(np.shape(leaf)) < len(parts)
            or any(size % part for size, part in zip(np.shape(leaf), parts, strict=False))
        ]
        if wrong:
            raise StructureMismatchError(
                "batch",
                got="leaves that can't be split over the mesh",
                expected=f"axes that are multiples of {tuple(parts)}",
                report="\n".join(wrong),
                fix=f"The mesh is {dict(shape)}, batch_spec {tuple(spec)}. Drop the last, smaller batch "
                "of an epoch, or choose another batch size.",
            )
