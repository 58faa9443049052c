"""The position of a data iterator: through Orbax for Grain, as JSON for other iterators."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from keras_flax_bridge.errors import CheckpointError, printable
from keras_flax_bridge.tree.untrusted import texts

log = logging.getLogger("keras_flax_bridge")


def is_grain(iterator: Any) -> bool:
    """Whether an iterator is Grain's, which Orbax can store."""
    return type(iterator).__module__.split(".")[0] == "grain"


def position(iterator: Any) -> dict[str, Any] | None:
    """The position of an iterator as JSON types; None for Grain's, which Orbax stores, and for no iterator.

    Raises:
        CheckpointError: if it has no position, or one of other types.
    """
    return None if iterator is None or is_grain(iterator) else get_position(iterator)


def get_position(iterator: Any) -> dict[str, Any]:
    """The result of `get_state` as JSON types.

    Raises:
        CheckpointError: if the iterator has no `get_state`, or it returns other types.
    """
    _require(iterator)
    state = iterator.get_state()
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    if not is_json(state):
        raise CheckpointError(
            "data",
            got=f"a {type(iterator).__name__} whose get_state() gives what JSON does not preserve",
            expected="bytes or JSON types: lists, dicts with string keys, strings, numbers, bools, None",
            fix="Give arrays and tuples as lists, or encode the state as bytes.",
        )
    return {"json": json.loads(json.dumps(state))}


def is_json(value: Any) -> bool:
    """Whether a value is the same after it was written as JSON and read again."""
    try:  # a tuple becomes a list, a key that is a number becomes a string
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def checksum(state: Any) -> int:
    """CRC-32 of an iterator's position, independent of the formatting of its JSON."""
    plain = texts.parsed(_text(state), "data") if isinstance(state, (bytes, str)) else state
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def _text(state: bytes | str) -> str:
    return state if isinstance(state, str) else state.decode(errors="replace")


def set_position(iterator: Any, stored: Mapping[str, Any]) -> None:
    """Sets an iterator to where another stood.

    Args:
        iterator: the iterator.
        stored: what `position` gave, checked by `schema.position`.

    Raises:
        CheckpointError: if it has no `set_state`.
    """
    _require(iterator)
    encoded = stored.get("bytes")
    iterator.set_state(stored["json"] if encoded is None else base64.b64decode(encoded))


def set_grain(iterator: Any, folder: Path) -> None:
    """Sets a Grain iterator to the stored position of this process.

    With a different number of processes, one state is used for all, if all were equal: each process then
    reads a different share of the same steps.

    Raises:
        CheckpointError: if the states differ, or neither process count divides the other.
    """
    files = sorted(folder.glob("process_*-of-*.json"))
    now, then = jax.process_count(), len(files)
    own = folder / f"process_{jax.process_index()}-of-{now}.json"
    states = {checksum(texts.read_json(file)) for file in files}
    if own not in files:
        if len(states) != 1 or max(now, then) % min(now, then):
            raise CheckpointError(
                str(folder),
                got=f"positions of {then} processes{'' if len(states) == 1 else ', which differ'}, for {now}",
                expected="equal positions, and process counts of which one divides the other",
                fix="Restore without data=, and position the iterator yourself.",
            )
        log.warning(
            "%s: the position of %d processes is used for %d; this is exact if a step reads the same rows, "
            "split among more or fewer processes",
            printable(str(folder)),
            then,
            now,
        )
        own = files[0]
    text = texts.read_text(own)
    # as Grain's own handler writes it: the state of a DataLoader unchanged, of a dataset as JSON
    iterator.set_state(text.encode() if isinstance(iterator.get_state(), bytes) else json.loads(text))


def has_position(iterator: Any) -> bool:
    """Checks that an iterator has `get_state` and `set_state`."""
    return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")


def _require(iterator: Any) -> None:
    if not has_position(iterator):
        raise CheckpointError(
            "data",
            got=f"a {type(iterator).__name__} without get_state and set_state",
            expected="a Grain iterator, or an iterator with both",
            fix="Make the batches with Grain, or save without data= and position the iterator yourself.",
        )
