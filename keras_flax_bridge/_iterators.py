"""The position of a data iterator: Grain's through Orbax, any other that can say its state as JSON."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from keras_flax_bridge.errors import CheckpointError


def is_grain(iterator: Any) -> bool:
    """Whether Orbax knows how to store an iterator, because Grain made it."""
    return type(iterator).__module__.split(".")[0] == "grain"


def position(iterator: Any) -> dict[str, Any] | None:
    """Where an iterator stands, as JSON types; None for Grain's, which Orbax stores, and for no iterator.

    Raises:
        CheckpointError: if it can't say, or says it in other types.
    """
    return None if iterator is None or is_grain(iterator) else told(iterator)


def told(iterator: Any) -> dict[str, Any]:
    """What an iterator says of where it stands, as JSON types.

    Raises:
        CheckpointError: if it can't say, or says it in other types.
    """
    _require(iterator)
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    try:
        plain = json.loads(json.dumps(state))
        unchanged = bool(plain == state)  # a tuple becomes a list, a number as a key a word
    except (TypeError, ValueError):
        unchanged = False
    if not unchanged:
        raise CheckpointError(
            "data",
            got=f"a {type(iterator).__name__} whose get_state() gives what JSON doesn't keep as it is",
            expected="bytes, or lists, dicts with words as keys, words, numbers, bools and None",
            fix="Give arrays and tuples as lists, or encode the state as bytes.",
        )
    return {"json": plain}


def checksum(state: Any) -> int:
    """CRC-32 of where an iterator stands, however its JSON is laid out."""
    plain = json.loads(state) if isinstance(state, (bytes, str)) else state
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def set_position(iterator: Any, stored: dict[str, Any]) -> None:
    """Sets an iterator to where another stood.

    Raises:
        CheckpointError: if it has no `set_state`.
    """
    _require(iterator)
    encoded = stored.get("bytes")
    iterator.set_state(stored["json"] if encoded is None else base64.b64decode(encoded))


def tells(iterator: Any) -> bool:
    """Whether an iterator can say where it stands, and be set there."""
    return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")


def _require(iterator: Any) -> None:
    if not tells(iterator):
        raise CheckpointError(
            "data",
            got=f"a {type(iterator).__name__} without get_state and set_state",
            expected="a Grain iterator, or one with both",
            fix="Make the batches with Grain, or save without data= and position the iterator yourself.",
        )
