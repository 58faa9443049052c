"""Finds what repeats in a graph."""

from __future__ import annotations

from keras_flax_bridge.migrate.ir import Graph


def fold(graph: Graph) -> None:
    """Turns what repeats into graphs of their own."""
