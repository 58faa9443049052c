"""Logs: values by name, as steps report them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Logs without nested dicts, under the names and in the order that `fit` gives its callbacks.

    >>> flat_logs({"loss": 1.0, "compile_metrics": {"mae": 2.0}})
    {'mae': 2.0, 'loss': 1.0}
    """
    flat: dict[str, Any] = {}
    for name, value in sorted(logs.items()):
        flat |= flat_logs(value) if isinstance(value, dict) else {name: value}
    return flat
