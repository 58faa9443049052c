"""Checkpoints whose optimizer is on the other side: Keras's where optax is wanted, or the reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import keras

from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.optimizers.step_interface import KerasTransformation
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree.leaves import placed_like
from keras_flax_bridge.tree.paths import Path, flatten_tree


class Detour(NamedTuple):
    """What to restore into instead, and what makes of it what was asked for."""

    like: TrainState
    back: Callable[[Any], Any]


def detour(like: Any, wanted: Iterable[Path], stored: Iterable[Path]) -> Detour | None:
    """The way through the other side, if what is stored is the state of that one and not of this.

    Args:
        like: what was asked for: a `TrainState`, or a compiled model.
        wanted: the paths of its leaves.
        stored: the paths in the checkpoint.
    """
    slots, own = ({path[1:] for path in paths if path[0] == "opt_state"} for paths in (stored, wanted))
    if not slots or slots == own:
        return None
    try:
        return _of_model(like, slots) if isinstance(like, keras.Model) else _of_state(like, slots)
    except BridgeError:  # it can't be converted: then it is a mismatch, and is told as one
        return None


def _of_state(like: Any, slots: set[Path]) -> Detour | None:
    if not isinstance(like, TrainState) or like.parts:
        return None
    is_keras = isinstance(like.tx, KerasTransformation)
    abstract = like.replace(opt_state=_shapes(like.opt_state))
    other = abstract.to_optax() if is_keras else abstract.to_keras()
    if slots != flatten_tree(other.opt_state).keys():
        return None

    def back(state: Any) -> Any:
        made = state.to_keras() if is_keras else state.to_optax()
        placed = jax.tree.map(placed_like, made.opt_state, like.opt_state)
        return made.replace(opt_state=placed, tx=like.tx, apply_fn=like.apply_fn)

    return Detour(other, back)


def _of_model(model: Any, slots: set[Path]) -> Detour | None:
    if not model.compiled or not isinstance(model.optimizer, keras.optimizers.Optimizer):
        return None
    like = jax.eval_shape(lambda: TrainState.from_keras(model))
    way = _of_state(like, slots)
    if way is None:
        return None

    def back(state: Any) -> Any:
        state.to_keras(model).assign_to(model, copy=False)
        return model

    return way._replace(back=back)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
