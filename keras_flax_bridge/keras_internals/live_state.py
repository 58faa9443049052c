"""A model whose values are in a state while it trains, until a callback asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals.entries import Collection
from keras_flax_bridge.keras_internals.values import move
from keras_flax_bridge.tree.leaves import owned, placed_like
from keras_flax_bridge.tree.paths import Flat, flatten_tree

# under which name Keras asks for the values of a tree
_TREES = {
    "trainable_variables": "params",
    "non_trainable_variables": "non_trainable",
    "optimizer_variables": "opt_state",
    "metrics_variables": "metrics",
}


class LiveState:
    """Lets a model show a state, as `fit` does: its variables get the values when a callback reads `model`.

    Keras's `Callback.model` calls the model's `jax_state_sync`, which writes what `_jax_state` holds into the
    variables and notes it in `_jax_state_synced`. Here `_jax_state` is this object, which looks the values up
    only then: to show another state costs two assignments.

    Args:
        model: the model.
        collections: the variables that get values, by tree.
        trees: of a state, the trees of values by the same names.
    """

    def __init__(
        self,
        model: Any,
        collections: Mapping[str, Collection],
        trees: Callable[[Any], Mapping[str, Any]],
    ):
        self._model, self._collections, self._trees = model, dict(collections), trees
        self._state: Any = None
        # past Keras's tracking of attributes, which takes longer than the rest of a step's bookkeeping
        self._attributes = vars(model)
        # `_jax_state`, `_jax_state_synced`: what the model writes into its variables, and whether it did
        self._attributes["_jax_state"] = self
        self._attributes["_jax_state_synced"] = True

    def has(self, tree: str) -> bool:
        """Whether the variables of a tree get values."""
        return tree in self._collections

    def add(self, tree: str, collection: Collection) -> None:
        """Gives values to the variables of another tree as well, from the next state that is shown."""
        self._collections[tree] = collection

    def show(self, state: Any) -> None:
        """Shows a state from now on."""
        self._state = state
        self._attributes["_jax_state_synced"] = False

    @property
    def is_asked(self) -> bool:
        """Whether the variables got the values since they were last shown or taken."""
        asked: bool = self._attributes["_jax_state_synced"]
        return asked

    def sync(self) -> None:
        """Writes the values into the variables now."""
        self._model.jax_state_sync()

    def get(self, name: str, default: Any = None) -> Any:
        """The values of a tree in Keras's order, for `jax_state_sync`; none for a tree that isn't shown."""
        collection = self._collections.get(_TREES[name])
        if collection is None:
            return default
        if name == "trainable_variables":
            self._require_same(collection)
        flat = flatten_tree(self._trees(self._state)[_TREES[name]])
        return [flat[entry.path] for entry in collection]

    def take(self) -> dict[str, Flat]:
        """The values that differ from those shown, by tree; the variables hold none from now on.

        A step may take over the buffers of the state, which the variables would share.

        Raises:
            StructureMismatchError: if variables were frozen or unfrozen meanwhile.
        """
        self._require_same(self._collections["params"])
        shown = self._trees(self._state)
        changed = {name: _changed(own, shown[name]) for name, own in self._collections.items()}
        for collection in self._collections.values():
            move(collection)
        self._attributes["_jax_state_synced"] = False
        return {name: flat for name, flat in changed.items() if flat}

    def end(self) -> None:
        """Lets go of the model. Its variables hold what they held last."""
        self._attributes["_jax_state"] = None
        self._attributes["_jax_state_synced"] = True
        self._state = None

    def _require_same(self, params: Collection) -> None:
        """Checks that the same variables are trained as when training began.

        Raises:
            StructureMismatchError: if not.
        """
        if [id(e.variable) for e in params] != [id(v) for v in self._model.trainable_variables]:
            raise StructureMismatchError(
                f"model {self._model.name!r}",
                got="other trainable variables than when training began",
                expected="the same until training ends",
                fix="Freeze and unfreeze between two runs: compile the model again, make the step again, and "
                "move the state with state.repartition(model).",
            )


def _changed(collection: Collection, tree: Any) -> Flat:
    """The values that are other arrays than those in the tree, each copied: they may be held elsewhere."""
    shown = flatten_tree(tree)
    pairs = {entry.path: (entry.variable.value, shown[entry.path]) for entry in collection}
    return {path: placed_like(owned(new), old) for path, (new, old) in pairs.items() if new is not old}
