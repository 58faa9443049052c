"""The leaves of an optax state as the variables of an `OptaxOptimizer`, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from keras_flax_bridge.keras_internals import Collection, variable_spec
from keras_flax_bridge.tree.leaves import from_disk, is_abstract, on_disk, owned
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree, nest_paths

Place = tuple[str, int | None]  # the name of a field, and the index of the weight that the leaf belongs to


def places_of(state: Any, weights: Iterable[Path]) -> list[Place]:
    """The field and the weight of every leaf of an optax state, in the order of its leaves.

    Args:
        state: the state of a transformation of a tree of weights.
        weights: the paths of the weights in that tree.
    """
    owners = {path: index for index, path in enumerate(weights)}
    found = [_place(path, owners) for path in flatten_tree(state)]
    names = _short([prefix for prefix, _ in found])
    return [(names[prefix], owner) for prefix, owner in found]


def _place(path: Path, owners: Mapping[Path, int]) -> tuple[Path, int | None]:
    """The position of a leaf in the state: its prefix and its parameter, or neither for a number."""
    suffixes = (path[start:] for start in range(len(path)))
    longest = next((suffix for suffix in suffixes if suffix in owners), None)
    return (path, None) if longest is None else (path[: len(path) - len(longest)], owners[longest])


def _short(order: list[Path]) -> dict[Path, str]:
    """A name for each field: its last part if unique, otherwise its full path."""
    words = {
        prefix: next((name for name in reversed(prefix) if not name.isdigit()), "state") for prefix in order
    }
    given = list(words.values())
    return {prefix: word if given.count(word) == 1 else "/".join(prefix) for prefix, word in words.items()}


def to_slots(
    optimizer: Any, entries: Collection, state: Any, params: Collection, step: Any
) -> dict[str, Any]:
    """The tree of an `OptaxOptimizer`, or of one around it, with the leaves of an optax state.

    Leaves without a counterpart are in it too, by their paths in the state: the caller compares the tree
    with `entries`, and reports them.

    Args:
        optimizer: a built `OptaxOptimizer`.
        entries: its variables, and those of one around it.
        state: the state of a transformation, for parameters by structural key; concrete or abstract.
        params: the parameters.
        step: the number of batches seen, concrete or abstract.
    """
    flat = flatten_tree(state)
    places = places_of(state, [entry.path for entry in params])
    held = optimizer.held_variables()
    given = {id(held[p]): leaf for p, leaf in zip(places, flat.values(), strict=True) if p in held}
    lost = {path: leaf for (path, leaf), p in zip(flat.items(), places, strict=True) if p not in held}
    abstract = any(map(is_abstract, [*flat.values(), step]))
    expected = {id(variable) for variable in held.values()}
    tree: dict[Path, Any] = {("state", *path): leaf for path, leaf in lost.items()}
    for path, variable, *_ in entries:
        if id(variable) in given:
            tree[path] = on_disk(given[id(variable)])
        elif path[-1] == "iteration":
            tree[path] = step if abstract else jnp.asarray(step, jnp.int32)
        elif id(variable) not in expected:  # of Keras's own options: it starts
            tree[path] = variable_spec(variable) if abstract else owned(variable.value)
    return nest_paths(tree)


def from_slots(optimizer: Any, entries: Collection, slots: Any, params: Collection, like: Any) -> Any:
    """The inverse of `to_slots`: an optax state, of the structure of `like`, of the leaves of `slots`."""
    values = flatten_tree(slots)
    by_id = {id(entry.variable): values[entry.path] for entry in entries}
    held, wanted = optimizer.held_variables(), flatten_tree(like)
    places = places_of(like, [entry.path for entry in params])
    return fill_tree(
        like,
        {
            path: from_disk(by_id[id(held[place])], leaf)
            for (path, leaf), place in zip(wanted.items(), places, strict=True)
            if place in held
        },
    )
