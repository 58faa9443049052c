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
    containers = text.count(b"{") + text.count(b"[")
    values = containers + text.count(b",") + text.count(b":")
    if containers > limits.CONTAINERS or values > limits.VALUES:
        got = f"{containers:,} lists and objects, {values:,} values"
        raise refusal(path, name, got, f"at most {limits.CONTAINERS:,} and {limits.VALUES:,}")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(path, name, "bytes that are not UTF-8", "JSON that Keras wrote") from error
    found = texts.parsed(decoded, f"{path}: {name}", CheckpointError)
    if not isinstance(found, dict):
        raise refusal(path, name, f"JSON of a {type(found).__name__}", "a JSON object")
    return found
