"""Checkpoints whose optimizer is on the other side: Keras's where optax is wanted, or the reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import keras

from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.optimizers.step_interface import KerasTransformation
from keras_flax_bridge.state.optimizer_switch import optax_state
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.tree.leaves import placed_like
from keras_flax_bridge.tree.paths import Path, flatten_tree


class Aligned(NamedTuple):
    """The target of a restore, after alignment of its optimizer.

    Attributes:
        like: the target, with the optimizer of the library whose state is stored.
        finish: converts the restored object to the requested one.
    """

    like: Any
    finish: Callable[[Any], Any] = lambda restored: restored


def align(like: Any, stored: Iterable[Path]) -> Aligned:
    """Aligns the target with the library, Keras or optax, whose optimizer state is stored.

    Args:
        like: the requested target; only a `TrainState` and a compiled model can be aligned.
        stored: the names in the checkpoint.

    Returns:
        `like` itself where its optimizer state has the names that are stored, or can't be converted: then it
        is a mismatch, and is reported as one.
    """
    slots = {name[1:] for name in stored if name[0] == "opt_state"}
    own = _slots(like) if slots else None
    if own is None or slots == own:
        return Aligned(like)
    try:
        found = _of_model(like, slots) if isinstance(like, keras.Model) else _of_state(like, slots)
    except BridgeError:
        return Aligned(like)
    return found or Aligned(like)


def _slots(like: Any) -> set[Path] | None:
    """The names in the optimizer state of what has one."""
    if isinstance(like, TrainState):
        return set(flatten_tree(like.opt_state)) if not like.parts else None
    if (
        isinstance(like, keras.Model)
        and like.compiled
        and isinstance(like.optimizer, keras.optimizers.Optimizer)
    ):
        return {entry.path for entry in receivers(like)["opt_state"]}
    return None


def _of_state(like: TrainState, slots: set[Path]) -> Aligned | None:
    is_keras = isinstance(like.tx, KerasTransformation)
    if is_keras == (_ITERATION in slots):  # stored on the same side
        return None
    abstract = like.replace(opt_state=_shapes(like.opt_state))
    other = abstract.to_optax() if is_keras else abstract.to_keras()
    if slots != flatten_tree(other.opt_state).keys():
        return None

    def finish(state: Any) -> Any:
        opt_state = state.to_keras().opt_state if is_keras else optax_state(state, like.opt_state)
        placed = jax.tree.map(placed_like, opt_state, like.opt_state)
        return state.replace(opt_state=placed, tx=like.tx, apply_fn=like.apply_fn)

    return Aligned(other, finish)


_ITERATION = ("iteration",)  # what the state of every Keras optimizer has, and no state of optax


def _of_model(model: Any, slots: set[Path]) -> Aligned | None:
    found = _of_state(jax.eval_shape(lambda: TrainState.from_keras(model)), slots)
    if found is None:
        return None

    def finish(state: Any) -> Any:
        state.to_keras(model).assign_to(model, copy=False)
        return model

    return found._replace(finish=finish)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
