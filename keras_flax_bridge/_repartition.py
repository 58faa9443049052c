"""Moves the leaves of a state to where a model has them after layers were frozen or unfrozen."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge import _intake, _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._apply import KerasApply
from keras_flax_bridge._transforms import KerasTransformation, trainee, transformation
from keras_flax_bridge.errors import NotBuiltError


def fields(state: Any, model: Any) -> dict[str, Any]:
    """The fields that change: weights where the model has them, slots as far as they survive.

    Raises:
        StructureMismatchError: if the model has other variables than the state.
    """
    trained = _intake.built(trainee(model, optimizer=_optimizer(state.tx, model)), None)
    variables = V.collect(trained, metrics=False)
    flat = {**_paths.flatten(state.params), **_paths.flatten(state.non_trainable)}
    weights = variables.params + variables.non_trainable
    difference = _paths.diff(flat, {e.path: V.variable_spec(e.variable) for e in weights})
    if difference:
        raise difference.error(f"model {model.name!r}", "It must be the model of this state.")
    params = variables.params.tree([flat[entry.path] for entry in variables.params])
    tx = transformation(trained, variables)
    return {
        "apply_fn": KerasApply(trained),
        "tx": tx,
        "params": params,
        "non_trainable": variables.non_trainable.tree([flat[e.path] for e in variables.non_trainable]),
        "opt_state": _intake.unaliased(_slots(state, tx, params), params),
        **(_metrics(state, trained) if model.compiled else {}),
    }


def _optimizer(tx: Any, model: Any) -> Any:
    """What trains the model from now on; None for what it is compiled with."""
    if not isinstance(tx, KerasTransformation):
        return tx
    return None if model.compiled else _intake.rebuilt(tx.optimizer)


def _slots(state: Any, tx: Any, params: Any) -> Any:
    """Slots of weights that stay trainable go on, the others start as the optimizer starts them."""
    fresh, kept = tx.init(params), _paths.flatten(state.opt_state)
    if not isinstance(tx, KerasTransformation):
        return _paths.fill(fresh, kept)
    if not V.takes_up(tx.optimizer, state.tx.optimizer):
        return fresh
    if tx.optimizer is not state.tx.optimizer:  # its learning rate is the one just compiled
        kept = {path: leaf for path, leaf in kept.items() if path[-1] != "learning_rate"}
    return _paths.fill(_averaging(fresh, params), kept)


def _averaging(fresh: Any, params: Any) -> Any:
    """Averages of weights start with the weights, as Keras has it at iteration 0."""
    weights = _paths.flatten(params)
    started = {
        path: weights[path[path.index(V.AVERAGES) + 1 :]]
        for path in _paths.flatten(fresh)
        if V.AVERAGES in path
    }
    return _paths.fill(fresh, started)


def _metrics(state: Any, trained: Any) -> dict[str, Any]:
    """Metrics that the model still has go on, new ones start."""
    try:
        metrics = V.collect(trained).metrics
    except NotBuiltError:  # new ones would need data; those of the state stay
        return {}
    start = _intake.zeroed(trained, metrics, metrics.tree())
    trees = {name: _paths.flatten(getattr(state, name)) for name in ("metrics", "eval_metrics")}
    return {name: _paths.fill(start, kept) for name, kept in trees.items()}
