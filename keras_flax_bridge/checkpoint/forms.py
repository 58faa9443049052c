"""The names under which this package and others store the leaves of one tree.

This package writes the weights of modules and of `nnx.State` below ``params``, other trees as they are, and
no level ``value`` below a variable. Flax code that uses Orbax has no ``params`` of its own, and a level
``value`` where it passes variables and not their arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras_flax_bridge.checkpoint.targets import Target
from keras_flax_bridge.tree.nodes import BOX, Leaf
from keras_flax_bridge.tree.paths import Path

_ROOTS: tuple[Path, ...] = ((), ("params",))


def named_as_stored(
    own: dict[Path, Path], stored: Mapping[Path, Any], target: Target
) -> tuple[dict[Path, Path], Target]:
    """The stored path of every name, in the form that finds the most leaves of the target.

    Args:
        own: the stored path of every name in this package's own form.
        stored: the leaves of the checkpoint.
        target: the target of the restore.

    Returns:
        The paths by name, and the target: where names have no ``params`` above them, the whole checkpoint
        must be used up.
    """
    hits = len(target.wanted.keys() & own.keys())
    found = {root: _places(target.leaves, root, stored) for root in _ROOTS}
    root = max(found, key=lambda root: len(found[root]))
    if len(found[root]) <= hits:
        return own, target
    used = set(found[root].values())
    left = {name: place for name, place in own.items() if place not in used}
    again = {(*root, *path) for path in target.other_places()} if left else set()
    left = {name: place for name, place in left.items() if place not in again}
    names = {name if name not in found[root] else (*name, "(stored)"): place for name, place in left.items()}
    return {**found[root], **names}, target if root else target._replace(scope=None)


def _places(leaves: Mapping[Path, Leaf], root: Path, stored: Mapping[Path, Any]) -> dict[Path, Path]:
    found = {}
    for name, leaf in leaves.items():
        place = next((p for form in _forms(leaf) if (p := (*root, *form)) in stored), None)
        if place is not None:
            found[name] = place
    return found


def _forms(leaf: Leaf) -> Iterator[Path]:
    yield leaf.path
    yield leaf.boxed
    yield (*leaf.path, BOX)
    if leaf.path[-1] == BOX:
        yield leaf.path[:-1]
