"""A variable with its path, its kind and its place in Keras's order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, nest_paths

PARAM, FROZEN, BATCH_STAT, SEED, OTHER = "param", "frozen", "batch_stat", "seed", "other"
OVERWRITTEN = "overwritten"  # by its gradient, such as the scales of float8 training
UNTRACKED = "untracked"  # a variable that Keras has in no list, such as the state of an RNN
LINEN_COLLECTIONS = {  # where a `linen.Module` keeps a variable, by its kind
    PARAM: "params",
    OVERWRITTEN: "_overwrite_with_gradient",  # Flax's name for it
    FROZEN: "frozen",
    BATCH_STAT: "batch_stats",
    OTHER: "batch_stats",  # state that calls may change, such as counters
    UNTRACKED: "batch_stats",
    SEED: "seeds",
}


class Entry(NamedTuple):
    """One Keras variable, its structural path and its kind, and whether Keras has it in a list."""

    path: Path
    variable: Any
    kind: str
    tracked: bool = True


class Collection(tuple[Entry, ...]):
    """Entries in the order in which Keras's stateless functions take their values."""

    def __add__(self, other: Any) -> Collection:
        return Collection((*self, *other))

    def tree(self, values: Iterable[Any] | None = None) -> dict[str, Any]:
        """The nested dict of `values` (by default the variables' own), given in Keras's order."""
        values = [entry.variable.value for entry in self] if values is None else values
        return nest_paths({e.path: v for e, v in zip(self, values, strict=True)})

    def leaves(self, tree: Any, where: str) -> list[Any]:
        """The leaves of `tree` in Keras's order, after checking every path, shape and dtype.

        Raises:
            StructureMismatchError: naming all leaves that are missing, unexpected or of another kind.
        """
        flat = flatten_tree(tree)
        return [flat[path] for path in self.order(flat, where)]

    def order(self, flat: Flat, where: str) -> list[Path]:
        """The paths of `flat` in Keras's order, after checking every path, shape and dtype.

        Raises:
            StructureMismatchError: naming all leaves that are missing, unexpected or of another kind.
        """
        difference = diff_trees(flat, self.specs())
        if difference:
            raise difference.error(where, _OTHER_ARCHITECTURE)
        return [entry.path for entry in self]

    def specs(self) -> dict[Path, jax.ShapeDtypeStruct]:
        """Shape and dtype of every entry, without touching its value."""
        return {entry.path: variable_spec(entry.variable) for entry in self}


_OTHER_ARCHITECTURE = (
    "The state belongs to another model, or layers were added, frozen or unfrozen since: "
    "make it with TrainState.from_keras(model), or move its leaves with state.repartition(model)."
)


class ModelVariables(NamedTuple):
    """All variables of a model that takes part in training."""

    params: Collection
    non_trainable: Collection
    opt_state: Collection
    metrics: Collection
    compiled: Collection = Collection()


def variable_spec(variable: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a Keras variable."""
    # `_dtype`: the public dtype is the autocast one inside a mixed-precision layer call
    return jax.ShapeDtypeStruct(tuple(variable.shape), variable._dtype)


def partition(variable: Any) -> jax.sharding.NamedSharding | None:
    """The sharding that a variable was given, by keras.distribution or its `layout`."""
    # `_layout`: what keras.distribution chose when the variable was made; nothing public has it
    layout = getattr(variable._layout, "backend_layout", variable._layout)
    return layout if isinstance(layout, jax.sharding.NamedSharding) else None
