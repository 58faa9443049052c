"""`fit`, `evaluate` and `predict` of Keras on a mesh."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax
import keras
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import ArgumentError
from keras_flax_bridge.keras_internals import Collection, fitting
from keras_flax_bridge.sharding.rules import Rules, automatic, layouts
from keras_flax_bridge.state.trees import WEIGHTS
from keras_flax_bridge.training.kinds import PREDICT, Kind
from keras_flax_bridge.training.on_mesh import Meshed
from keras_flax_bridge.tree.leaves import placed
from keras_flax_bridge.tree.paths import nest_paths


class Placement:
    """Where the variables and the batches of a model are while it is trained on a mesh.

    Args:
        mesh: the devices.
        rules: how variables are sharded; see `shardings_for`.
    """

    def __init__(self, mesh: Mesh, rules: Rules):
        self._mesh, self._rules = automatic(mesh), rules

    def functions(self, model: Any, *kinds: Kind) -> AbstractContextManager[None]:
        """While it holds, Keras's steps of these kinds run on the mesh; variables stay there afterwards."""
        return fitting.stepping(model, {kind.method: _Step(model, kind, self) for kind in kinds})

    def batches(self, kind: Kind) -> Meshed:
        """Places batches for steps of a kind."""
        return Meshed(kind, self._mesh, self._rules, None)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what each device has."""
        return NamedSharding(self._mesh, PartitionSpec())

    def wanted(self, model: Any, kind: Kind) -> tuple[list[NamedSharding], ...]:
        """The sharding of each value that Keras hands to a step, tree by tree.

        Raises:
            StructureMismatchError: naming the rule that matches no weight, or what can't be split.
        """
        collections = _lists(model, kind)
        tree = {name: nest_paths(own.specs()) for name, own in collections.items()}
        names = {(name, *e.path): e.variable.path for name in WEIGHTS for e in collections[name]}
        found = layouts(tree, self._mesh, self._rules, names)
        return tuple(
            [NamedSharding(self._mesh, found[(name, *entry.path)].spec) for entry in own]
            for name, own in collections.items()
        )


def _lists(model: Any, kind: Kind) -> dict[str, Collection]:
    """The variables that Keras hands to a step, in its order, by the tree that they are in."""
    found = dict(zip(WEIGHTS, keras_internals.collect_tracked(model), strict=True))
    if kind.is_compiled:
        variables = keras_internals.collect(model)
        found |= {"opt_state": variables.opt_state} if kind.trains else {}
        found["metrics"] = variables.metrics
    return found


class _Step:
    """A step of Keras on a mesh: on values of variables and a batch."""

    def __init__(self, model: Any, kind: Kind, placement: Placement):
        self._model, self._kind, self._placement = model, kind, placement
        self._batches = placement.batches(kind)
        self._wanted: Any = None
        self._run: Any = None
        self._last: Any = None  # its own result, which needs no placing

    def __call__(self, values: Any, batch: Any) -> tuple[Any, Any]:
        if self._run is None:
            self._wanted = self._placement.wanted(self._model, self._kind)
            outputs = self._placement.replicated if self._kind.gives else None  # XLA's choice for predictions
            step = self._predicting if self._kind is PREDICT else getattr(self._model, self._kind.method)
            self._run = jax.jit(step, donate_argnums=0, out_shardings=(outputs, self._wanted))
        if values is not self._last:
            values = jax.tree.map(placed, values, self._wanted)
        logs, self._last = self._run(values, self._batches.batch(batch))
        return logs, self._last

    def _predicting(self, values: Any, batch: Any) -> tuple[Any, Any]:
        """Keras's step of prediction, with all values that it leaves."""
        outputs, non_trainable = self._model.predict_step(values, batch)
        return outputs, (values[0], non_trainable)


def placement(mesh: Mesh | None, rules: Rules | None) -> Placement | None:
    """Where a model is trained; None where Keras puts it.

    Raises:
        ArgumentError: for rules without a mesh, or a mesh beside Keras's own distribution.
    """
    if mesh is None:
        if rules is not None:
            raise ArgumentError("rules", got="rules without mesh=", expected="both", fix="Pass mesh= too.")
        return None
    if keras.distribution.distribution() is not None:
        raise ArgumentError(
            "mesh",
            got="a mesh, and a distribution of Keras that is set",
            expected="one of them",
            fix="Call keras.distribution.set_distribution(None), or leave mesh= out.",
        )
    return Placement(mesh, () if rules is None else rules)
