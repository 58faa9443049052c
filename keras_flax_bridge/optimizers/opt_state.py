"""`opt_state_to_optax` and `opt_state_from_optax`: convert the state of a running optimizer."""

from __future__ import annotations

from typing import Any

import jax
import keras

from keras_flax_bridge.optimizers.rules import RULES
from keras_flax_bridge.optimizers.state_conversion import described, packed, unpacked
from keras_flax_bridge.optimizers.to_optax import Label, Native
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree
from keras_flax_bridge.tree.types import Leaf, OptState, Params


@words.door
def opt_state_to_optax(
    optimizer: keras.optimizers.Optimizer,
    opt_state: OptState,
    params: Params,
    *,
    model: keras.Model | None = None,
) -> OptState:
    """Converts the state of a Keras optimizer to that of ``to_optax(optimizer)``.

    Args:
        optimizer: the Keras optimizer.
        opt_state: its state, as ``TrainState.from_keras(model).opt_state`` has it; concrete or abstract.
        params: the parameters, or their `jax.ShapeDtypeStruct`.
        model: as in `to_optax`.

    Returns:
        The state, of the structure of ``to_optax(optimizer).init(params)``. It shares unchanged
        arrays with `opt_state`; donate only one of the two.

    Raises:
        StructureMismatchError: if `opt_state` isn't that of this optimizer for these parameters; lists all
            leaves that are missing, unexpected, or have a different shape or dtype.
        UnsupportedOptimizerError: as `to_optax`.

    Example:
        >>> import keras, optax
        >>> from keras_flax_bridge import TrainState, to_optax
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> state = TrainState.from_keras(model)
        >>> opt_state = opt_state_to_optax(model.optimizer, state.opt_state, state.params)
        >>> grads = jax.tree.map(lambda p: p + 1, state.params)
        >>> updates, opt_state = to_optax(model.optimizer).update(grads, opt_state, state.params)
        >>> optax.tree.get(opt_state, "mu")["dense"]["kernel"].shape
        (4, 2)
    """
    return packed(Native.of(optimizer, model), opt_state, params)


@words.door
def opt_state_from_optax(
    optimizer: keras.optimizers.Optimizer,
    opt_state: OptState,
    params: Params,
    step: Leaf | int | None = None,
    *,
    model: keras.Model | None = None,
    label: bool = False,
) -> OptState:
    """Converts the state of an optax optimizer to that of a Keras optimizer with the same rule.

    Reads what ``to_optax(optimizer)`` made of it, and the states of optax's own optimizers (`optax.sgd`,
    `optax.adamw`, ...), also inside `optax.chain`, `optax.MultiSteps` (with its default, the mean),
    `optax.inject_hyperparams`, `optax.masked` and `optax.partition`.

    Args:
        optimizer: the Keras optimizer that continues.
        opt_state: the state of the optax optimizer; concrete or abstract.
        params: the parameters, or their `jax.ShapeDtypeStruct`.
        step: batches seen; used where the state holds no count (`optax.sgd`, `optax.rmsprop`,
            `optax.adagrad`, `optax.adadelta` at a constant rate).
        model: as in `to_optax`.
        label: True returns a pair of the state and a `Label` that says whether the Keras optimizer continues
            exactly as the optax one would have, or what differs and by how much.

    Returns:
        The nested dict that ``TrainState.from_keras(model).opt_state`` is. With ``label=True`` also the
        label.

    Raises:
        NotBuiltError: if the state holds no count and there is no `step`.
        StructureMismatchError: if slots are missing, or are those of other parameters; lists all of them.
        UnsupportedOptimizerError: naming a state that the rule of this optimizer doesn't have.

    Example:
        >>> import jax.numpy as jnp, keras, optax
        >>> params = {"kernel": jnp.ones((2, 3))}
        >>> tx = optax.sgd(0.1, momentum=0.9)
        >>> _, opt_state = tx.update({"kernel": jnp.ones((2, 3))}, tx.init(params), params)
        >>> sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        >>> state, label = opt_state_from_optax(sgd, opt_state, params, step=1, label=True)
        >>> print(label.exact, int(state["iteration"]), f"{float(state['momentums']['kernel'][0, 0]):.2f}")
        True 1 -0.10
    """
    tx = Native.of(optimizer, model)
    like, _, expected = described(tx, params)
    state = unpacked(tx, opt_state, params, step)
    difference = diff_trees(flatten_tree(state), expected)
    if difference:
        raise difference.error(
            "opt_state",
            f"The {type(optimizer).__name__} needs these leaves, and they can't be derived: convert for an "
            "optimizer of the same options, with the same parameters.",
        )
    return (state, _label(tx, opt_state, like)) if label else state


def _label(tx: Native, opt_state: Any, like: Any) -> Label:
    """Whether the state is that of a stock optimizer with a different rule."""
    stock: Any = getattr(RULES.get(type(tx.optimizer)), "stock", None)
    structure: Any = jax.tree.structure(opt_state)
    is_ours = structure == jax.tree.structure(like) or _holds_ours(opt_state)
    is_same = is_ours or (stock is not None and not stock.differs(tx.optimizer))
    return tx.label._replace(exact=is_same)


def _holds_ours(node: Any) -> bool:
    if type(node).__module__.startswith(__package__ or ""):
        return True
    children = node.values() if isinstance(node, dict) else node if isinstance(node, (tuple, list)) else ()
    return any(map(_holds_ours, children))
