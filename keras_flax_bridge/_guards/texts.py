"""Texts in files of Keras's kinds: the config of a model."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge._guards import limits
from keras_flax_bridge._guards.limits import refusal


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
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        got = f"{type(error).__name__}: {limits.shown(str(error))}"
        raise refusal(path, name, got, "JSON that Keras wrote") from error
    if not isinstance(found, dict):
        raise refusal(path, name, f"JSON of a {type(found).__name__}", "a JSON object")
    return found
