"""Maps the leaves of a state to the variables of a Keras model; checks all before anything is assigned."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import Collection
from keras_flax_bridge.optimizers.step_interface import KerasTransformation
from keras_flax_bridge.state.model_parts import require_single
from keras_flax_bridge.state.multi_model import arguments, require_same
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import require_values
from keras_flax_bridge.tree.paths import flatten_tree

log = logging.getLogger("keras_flax_bridge")

Assignments = list[tuple[Any, Any]]


def of(state: Any, model: Any, **parts: Any) -> Assignments:
    """Every variable of a model, or of all models in a dict, with the leaf it receives.

    Args:
        state: a `TrainState`.
        model: a built model, or a dict of them.
        **parts: `optimizer` and `metrics` in place of the compiled ones, or None.

    Raises:
        NotBuiltError: if a model is unbuilt, or the state is abstract.
        OwnershipError: if a leaf was donated.
        StructureMismatchError: if the leaves are not those of the model; lists all of them.
    """
    if not isinstance(model, Mapping):
        require_single(state.parts, "assign_to")
        return _of_one(state, model, parts)
    require_same(model, state.parts)
    given = {name: arguments(parts, name, model) for name in model}
    plans = [_of_one(state.part(name), model[name], given[name]) for name in model]
    return [pair for plan in plans for pair in plan]


def _of_one(state: Any, model: Any, parts: Mapping[str, Any]) -> Assignments:
    places = receivers(model, **parts)
    if "opt_state" in places and "metrics" not in places:
        log.info(
            "model %r: its metrics have seen no data yet: they take no values, start at zero", model.name
        )
    if not isinstance(state.tx, KerasTransformation) and places.pop("opt_state", Collection()):
        _warn_foreign_slots(model)
    variables = {(tree, *e.path): e.variable for tree, found in places.items() for e in found}
    flat = flatten_tree({tree: getattr(state, tree) for tree in places})
    difference = diff_trees(flat, {path: keras_internals.variable_spec(v) for path, v in variables.items()})
    if difference:
        raise difference.error(
            f"model {model.name!r}",
            "Nothing was assigned. Take the model that the state was made from, "
            "or another build of the same architecture.",
        )
    require_values(flat)
    return [(variable, flat[path]) for path, variable in variables.items()]


def _warn_foreign_slots(model: Any) -> None:
    if isinstance(getattr(model, "optimizer", None), keras.optimizers.Optimizer):
        warnings.warn(
            f"model {model.name!r}: the state was trained by optax, so the slots of the compiled "
            f"{type(model.optimizer).__name__} stay as they are",
            stacklevel=7,  # the caller of assign_to
        )
