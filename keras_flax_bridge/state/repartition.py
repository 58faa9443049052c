"""Moves the leaves of a state to the partition of a model after layers were frozen or unfrozen."""

from __future__ import annotations

from typing import Any

import jax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import AVERAGES, Collection
from keras_flax_bridge.optimizers.step_interface import (
    KerasTransformation,
    require_model,
    training_model,
    transformation,
)
from keras_flax_bridge.state import followers, trees
from keras_flax_bridge.state.apply_fn import KerasApply
from keras_flax_bridge.state.building import built
from keras_flax_bridge.state.transfer import unaliased, zeroed
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import owned
from keras_flax_bridge.tree.paths import fill_tree, flatten_tree


def fields(state: Any, model: Any, batch: Any) -> dict[str, Any]:
    """The fields that change: repartitioned weights, and the slots that are kept.

    Raises:
        NotBuiltError: if new metrics need a batch.
        StructureMismatchError: if the model has other variables than the state.
    """
    require_model(model)
    trained = built(training_model(model, **_trained_with(state, model)), batch)
    variables = keras_internals.collect(trained, metrics=False)
    flat = {**flatten_tree(state.params), **flatten_tree(state.non_trainable)}
    weights = variables.params + variables.non_trainable
    difference = diff_trees(flat, {e.path: keras_internals.variable_spec(e.variable) for e in weights})
    if difference:
        raise difference.error(f"model {model.name!r}", "It must be the model of this state.")
    moved = {
        name: collection.tree([flat[entry.path] for entry in collection])
        for name, collection in zip(trees.WEIGHTS, variables[:2], strict=True)
    }
    params = moved["params"]
    tx = transformation(trained, variables)
    return {
        "apply_fn": KerasApply(trained),
        "tx": tx,
        "opt_state": unaliased(_slots(state, tx, params, model.compiled), params),
        **moved,
        "compiled": _compiled(state, variables.compiled),
        **_metrics(state, trained),
        **_followers(state, moved),
    }


def _compiled(state: Any, collection: Collection) -> dict[str, Any]:
    """Keeps what the compiled objects still hold; what is new has the value of its variable."""
    kept = flatten_tree(state.compiled)
    return collection.tree([kept[e.path] if e.path in kept else owned(e.variable.value) for e in collection])


def _trained_with(state: Any, model: Any) -> dict[str, Any]:
    """The optimizer from now on: the compiled one, otherwise the previous one."""
    is_keras = isinstance(state.tx, KerasTransformation)
    if model.compiled:
        return {} if is_keras else {"optimizer": state.tx}
    before = keras_internals.compiled_parts(state.apply_fn.model)
    own = {"loss": before["loss"], "metrics": before.get("metrics")}
    return {**own, "optimizer": _again(state, model) if is_keras else state.tx}


def _again(state: Any, model: Any) -> Any:
    """A copy of the optimizer; its config is read with the state's values, since its own may have moved."""
    before, slots = state.apply_fn.model, flatten_tree(state.opt_state)
    now = {entry.path: entry.variable for part in keras_internals.collect_layer(model) for entry in part}
    held = [entry for part in keras_internals.collect_layer(before) for entry in part]
    counterparts = {id(entry.variable): now[entry.path] for entry in held if entry.path in now}
    entries = keras_internals.collect(before, metrics=False).opt_state
    values = [(entry.variable, slots[entry.path]) for entry in entries]
    return keras_internals.rebuilt(state.tx.optimizer, counterparts, values=values)


def _slots(state: Any, tx: Any, params: Any, compiled: bool) -> Any:
    """Keeps slots of weights that stay trainable; the optimizer initializes the others."""
    fresh, kept = tx.init(params), flatten_tree(state.opt_state)
    if not isinstance(tx, KerasTransformation):
        return fill_tree(fresh, kept)
    if not keras_internals.takes_up(tx.optimizer, state.tx.optimizer):
        return fresh
    if compiled and tx.optimizer is not state.tx.optimizer:  # its learning rate is the one just compiled
        kept = {path: leaf for path, leaf in kept.items() if path[-1] != "learning_rate"}
    return fill_tree(_averaging(fresh, params), kept)


def _averaging(fresh: Any, params: Any) -> Any:
    """Averages of weights start as the weights, as in Keras at iteration 0."""
    weights = flatten_tree(params)
    started = {
        path: weights[path[path.index(AVERAGES) + 1 :]] for path in flatten_tree(fresh) if AVERAGES in path
    }
    return fill_tree(fresh, started)


def _metrics(state: Any, trained: Any) -> dict[str, Any]:
    """Keeps metrics that the model still has; new ones start at their initial values."""
    metrics = keras_internals.collect(trained).metrics
    start = zeroed(trained, metrics, metrics.tree())
    before = trees.of_state(state, trees.of_metrics())
    return {name: followers.refitted(tree, start) for name, tree in before.items()}


def _followers(state: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Keeps trees that follow weights for weights that still exist, and starts them for new weights."""
    found = {}
    for name, follower in followers.following(trees.field_names(state)):
        before, of = getattr(state, name), weights[follower.of]
        if jax.tree.leaves(before):
            found[name] = unaliased(followers.refitted(before, follower.start(of)), of)
    return found
