"""What Keras's optimizers do with the weights when training is over."""

from __future__ import annotations

from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree.leaves import owned
from keras_flax_bridge.tree.paths import fill_tree, flatten_tree


def final(state: TrainState) -> TrainState:
    """The state as `fit` leaves it: averages of the weights in their place, if the optimizer keeps them."""
    optimizer: Any = getattr(state.tx, "optimizer", None)
    model: Any = getattr(state.apply_fn, "model", None)
    if model is None or not isinstance(optimizer, keras.optimizers.Optimizer):
        return state
    variables = keras_internals.collect(model, metrics=False)
    params, slots = flatten_tree(state.params), flatten_tree(state.opt_state)
    pairs = [(variables.params, params), (variables.opt_state, slots)]
    mapping = [(e.variable, flat[e.path]) for collection, flat in pairs for e in collection]
    with keras.StatelessScope(mapping) as scope:
        optimizer.finalize_variable_values([entry.variable for entry in variables.params])
        after = {e.path: scope.get_current_value(e.variable) for e in variables.params}
    new = {path: owned(value) for path, value in after.items() if value is not params[path]}
    return state.replace(params=fill_tree(state.params, new)) if new else state
