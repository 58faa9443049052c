"""Paths on disk: Orbax mistakes a dot inside a name for a level of its own, so dots are written ``%2E``."""

from __future__ import annotations

from keras_flax_bridge.tree.paths import Path


def encode(path: Path) -> Path:
    """A path with names that Orbax can write: without dots."""
    return tuple(name.replace("%", "%25").replace(".", "%2E") for name in path)


def decode(path: Path) -> Path:
    """The path whose names `encode` gave."""
    return tuple(name.replace("%2E", ".").replace("%25", "%") for name in path)
