"""The leaves of a state that Keras has in no list: older checkpoints lack them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import SEED, Entry
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.tree.leaves import is_abstract, placed
from keras_flax_bridge.tree.paths import Path

_RNN = "rnn_state"  # what Keras calls each of them, as `moving_` is the beginning of moving statistics


def untracked(state: Any) -> dict[Path, Entry]:
    """The entries of the leaves, by path, for a state of Keras models."""
    found = {}
    for name, model in models_of(getattr(state, "apply_fn", None)).items():
        variables = keras_internals.collect(model, metrics=False)
        for tree in ("non_trainable", "compiled"):
            prefix = (tree, name) if name else (tree,)
            found.update({(*prefix, *e.path): e for e in getattr(variables, tree) if not e.tracked})
    return found


def rnn_states(state: Any) -> list[Path]:
    """The paths in `non_trainable` of the states of stateful RNNs."""
    return [path[1:] for path, entry in untracked(state).items() if entry.path[-1].startswith(_RNN)]


def has_start(entry: Entry, leaf: Any) -> bool:
    """Whether a leaf has a value to start with: its own, or the one of a seed or of the state of an RNN."""
    return not is_abstract(leaf) or entry.kind == SEED or entry.path[-1].startswith(_RNN)


def start(entry: Entry, leaf: Any) -> Any:
    """The value to start with: a seed that depends on the path, and zero for the state of an RNN."""
    if not is_abstract(leaf):
        return leaf
    value = keras_internals.seed_at(entry.path) if entry.kind == SEED else jnp.zeros(leaf.shape, leaf.dtype)
    return value if leaf.sharding is None else placed(value, leaf.sharding)
