"""Texts in files of Keras's kinds: the config of a model."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.checkpoint.guards.limits import refusal
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.untrusted import texts


def parsed(path: FilePath, name: str, text: bytes) -> dict[str, Any]:
    """A JSON object, whose values take memory within the limits.

    Raises:
        CheckpointError: if the text is not one, or holds more values than any config.
    """
    where = f"{path}: {name}"
    decoded = texts.decoded(text, where, CheckpointError)
    found = texts.parsed(decoded, where, CheckpointError, limits.CONFIG_BOUNDS)
    if not isinstance(found, dict):
        raise refusal(path, name, f"JSON of a {type(found).__name__}", "a JSON object")
    return found
