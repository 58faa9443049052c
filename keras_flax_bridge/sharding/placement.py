"""Puts the leaves of a state on the devices of a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from keras_flax_bridge import keras_internals
from keras_flax_bridge.sharding.rules import Rules, automatic, layouts, named_shardings
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.trees import WEIGHTS
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.leaves import is_abstract, owned, placed, require_values
from keras_flax_bridge.tree.paths import Path, flatten_tree
from keras_flax_bridge.tree.types import PyTree, Target


@words.door
def shardings_for(state: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """The sharding of every leaf of a state, by rules that match the paths of its weights.

    The first rule that matches the path of a weight applies to it and to everything that belongs to it
    and has its shape: slots, averages, accumulated gradients. Weights that no rule matches, metrics,
    seeds and scalars are replicated.

    Args:
        state: a `TrainState`, concrete or abstract, or a tree of weights.
        mesh: the devices, a `jax.sharding.Mesh`. For a state of Keras models its axes are used as automatic
            axes, whatever their type.
        rules: pairs of a regular expression, searched for in paths such as ``params/dense/kernel``, and a
            `PartitionSpec`; or a `keras.distribution.LayoutMap`, by the names of the variables; or None for
            the sharding metadata of Flax modules.

    Returns:
        A tree of the structure of `state` with a `NamedSharding` for every leaf.

    Raises:
        StructureMismatchError: naming the rule that matches no weight, or all leaves whose shape
            a spec can't divide.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec as P
        >>> mesh = Mesh(jax.devices()[:1], ("model",))
        >>> weights = {"params": {"dense": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}}
        >>> shardings = shardings_for(weights, mesh, [("kernel", P(None, "model"))])
        >>> {name: tuple(own.spec) for name, own in shardings["params"]["dense"].items()}
        {'bias': (), 'kernel': (None, 'model')}
    """
    names = keras_names(state)
    mesh = automatic(mesh) if names else mesh
    return named_shardings(state, mesh, layouts(state, mesh, rules, names))


@words.door
def shard(state: Target, mesh: Mesh, rules: Rules) -> Target:
    """Puts a copy of a state on the devices of a mesh; see `shardings_for` for the rules.

    With several processes, each calls this with the same values.

    Args:
        state: a `TrainState`, or a tree of arrays; abstract leaves get their sharding and stay abstract, so
            that `restore` reads a checkpoint straight onto the devices.
        mesh: the devices.
        rules: see `shardings_for`.

    Returns:
        A state sharded by the rules.

    Raises:
        StructureMismatchError: as `shardings_for`.
        OwnershipError: if a leaf was donated.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import Mesh, PartitionSpec as P
        >>> mesh = Mesh(jax.devices()[:1], ("model",))
        >>> state = shard({"params": {"kernel": jnp.zeros((4, 8))}}, mesh, [("kernel", P(None, "model"))])
        >>> tuple(state["params"]["kernel"].sharding.spec)
        (None, 'model')
    """
    require_values({path: leaf for path, leaf in flatten_tree(state).items() if not is_abstract(leaf)})
    shardings = shardings_for(state, mesh, rules)
    put: Target = jax.tree.map(lambda x, to: placed(x if is_abstract(x) else owned(x), to), state, shardings)
    return put


def keras_names(state: Any) -> dict[Path, str]:
    """Keras's own names of the weights of a state, by path, for a state of Keras models."""
    found = {}
    for name, model in models_of(getattr(state, "apply_fn", None)).items():
        for tree, entries in zip(WEIGHTS, keras_internals.collect_layer(model), strict=True):
            prefix = (tree, name) if name else (tree,)
            found.update({(*prefix, *entry.path): entry.variable.path for entry in entries})
    return found
