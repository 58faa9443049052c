"""Trees that follow others in a train step, such as an average of the weights."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from keras_flax_bridge.state import trees
from keras_flax_bridge.state.trees import Follower
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import strong
from keras_flax_bridge.tree.paths import Flat, fill_tree, flatten_tree, nest_paths
from keras_flax_bridge.tree.types import PyTree


def following(given: Container[str]) -> list[tuple[str, Follower]]:
    """The given trees that follow another tree."""
    return [(name, tree.follows) for name, tree in trees.TREES.items() if tree.follows and name in given]


def advanced(name: str, follower: Follower, own: Flat, of: Flat, step: Any) -> Flat:
    """The leaves of a tree that follows another one, after a train step.

    Args:
        name: the name of the tree.
        follower: how it follows the other one.
        own: its leaves before the step.
        of: the leaves of the tree that it follows, after the step.
        step: the count after the step.

    Raises:
        StructureMismatchError: if the two trees have different paths, or shapes or dtypes would change.
    """
    unlike = diff_trees(own, of)._replace(mismatched={})  # an average may be of another dtype
    if unlike:
        raise unlike.error(f"state.{name}", f"It follows {follower.of}: {_FIX}")
    new = flatten_tree(follower.update(nest_paths(own), nest_paths(of), step))
    difference = diff_trees(new, own)
    if difference:
        raise difference.error(f"state.{name}", "Its update must keep paths, shapes and dtypes.")
    return {path: strong(new[path]) for path in own}


_FIX = (
    "start it from that tree, and after layers were frozen or unfrozen move it with state.repartition(model)."
)


def followed(state: Any, given: Container[str] = ()) -> dict[str, PyTree]:
    """Updates the trees of a state that follow other trees, after a train step; except the `given` trees.

    Raises:
        StructureMismatchError: as `advanced`.
    """
    found = {}
    for name, follower in following(trees.field_names(state)):
        before = getattr(state, name)
        own = {} if name in given else flatten_tree(before)
        if own:
            of = flatten_tree(getattr(state, follower.of))
            found[name] = fill_tree(before, advanced(name, follower, own, of, state.step))
    return found


def refitted(before: PyTree, start: PyTree) -> PyTree:
    """The tree `start`, with the leaves of `before` that are still of its paths and shapes."""
    fresh = flatten_tree(start)
    kept = flatten_tree(before).items()
    return fill_tree(start, {p: leaf for p, leaf in kept if p in fresh and fresh[p].shape == leaf.shape})
