"""Groups of leaves that are read together, to bound the memory in use."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from keras_flax_bridge.checkpoint.slices import GROUP
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Path

_MEMBERS = 1024  # leaves that are read together: what Orbax and jax keep for each takes memory too


def is_large(leaf: Any) -> bool:
    """Whether a leaf, which may be abstract, is read piece by piece."""
    return hasattr(leaf, "dtype") and size_of(leaf) > GROUP


def groups(flat: Mapping[Path, Any], packed: Container[Path] = ()) -> Iterator[list[Path]]:
    """The groups of paths that are read together; large leaves are separate groups.

    Args:
        flat: the leaves, which may be abstract.
        packed: those that are read as one, of which any number may be read together.
    """
    group: list[Path] = []
    size = members = 0
    for path, leaf in flat.items():
        own = 0 if isinstance(leaf, str) else size_of(leaf)
        if group and (size + own > GROUP or members == _MEMBERS):
            yield group
            group, size, members = [], 0, 0
        group.append(path)
        size += own
        members += path not in packed
    if group:
        yield group
