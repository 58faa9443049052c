"""What callbacks remember, such as a best value or a patience: stored beside a state, and put back."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, printable
from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.schema import Malformed

log = logging.getLogger("keras_flax_bridge")

_DEEPEST = 16  # containers in each other


@dataclass(frozen=True)
class Memory:
    """What callbacks remember at one moment.

    Attributes:
        content: JSON types: for each callback its attributes, by a key of its class and its order.
        arrays: the arrays that `content` refers to by their index.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[np.ndarray, ...] = ()

    def to_json(self) -> dict[str, Any] | None:
        """The content, and dtype and shape of each array, which `buffer` holds; None if there is nothing."""
        specs = [[dtype_name(array.dtype), list(array.shape)] for array in self.arrays]
        return {"content": self.content, "arrays": specs} if self.content else None

    def buffer(self) -> np.ndarray | None:
        """The bytes of all arrays, one after another; None if there are none."""
        parts = [
            np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in self.arrays if array.size
        ]
        return np.concatenate(parts) if parts else None

    @classmethod
    def from_json(cls, found: Mapping[str, Any], buffer: np.ndarray) -> Memory:
        """What was stored: `found` as `check` let it pass, and the bytes."""
        arrays, begin = [], 0
        for dtype, shape in found["arrays"]:
            end = begin + math.prod(shape) * schema.itemsize(dtype)
            part = np.array(buffer[begin:end])  # a copy: aligned, and the callback's own
            arrays.append(part.view(jax.numpy.dtype(dtype)).reshape(shape))
            begin = end
        return cls(found["content"], tuple(arrays))


NO_MEMORY = Memory()


class _Unstorable(TypeError):  # noqa: N818 - it never leaves the module
    """A value that can't be brought back as it is."""


# --- what is remembered


def remembered(callbacks: Iterable[Any], before: Memory | None = None) -> Memory:
    """What callbacks remember now.

    Args:
        callbacks: the callbacks.
        before: what they remembered when training began: what has not changed since, such as the arguments
            of their constructors, is left out. None to leave out nothing.
    """
    arrays: list[np.ndarray] = []
    content = {key: _attributes(callback, arrays) for key, callback in _keyed(callbacks)}
    if before is not None:
        content = {key: _changed(own, arrays, key, before) for key, own in content.items()}
    return Memory({key: own for key, own in content.items() if own}, tuple(arrays))


def _keyed(callbacks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Callbacks with their class and their order in it, by which they are found again."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__qualname__
        yield f"{name}/{seen[name]}", callback
        seen[name] += 1


def _attributes(callback: Any, arrays: list[np.ndarray]) -> dict[str, Any]:
    """The attributes of a callback that can be stored; of one with `get_state`, what that gives."""
    if _has_state(callback):
        return {"get_state()": _encoded(callback.get_state(), arrays)}
    found = {}
    for name, value in vars(callback).items():
        if name not in _NOT_OWN and not isinstance(value, (str, Path)):  # a text is a setting, or a path
            try:
                found[name] = _encoded(value, arrays)
            except _Unstorable:
                continue
    special = _special(callback)
    return {**found, "file": special[0](callback)} if special else found


_NOT_OWN = frozenset({"params", "model", "_model", "validation_data"})


def _changed(own: Mapping[str, Any], arrays: list[np.ndarray], key: str, before: Memory) -> dict[str, Any]:
    was = before.content.get(key, {})
    now = Memory(own, tuple(arrays))
    return {
        name: value
        for name, value in own.items()
        if name not in was or not _same(value, now.arrays, was[name], before.arrays)
    }


def _same(a: Any, arrays: Any, b: Any, others: Any) -> bool:
    """Whether two encoded values are equal; an array only if it is the same object."""
    if isinstance(a, dict) and isinstance(b, dict) and "array" in a and "array" in b:
        return arrays[a["array"]] is others[b["array"]]
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, arrays, y, others) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], arrays, b[k], others) for k in a)
    return bool(a == b)


def _has_state(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


# --- values as JSON types


def _encoded(value: Any, arrays: list[np.ndarray], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise _Unstorable
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value, arrays)
    if type(value) is list:
        return [_encoded(one, arrays, depth + 1) for one in value]
    if type(value) is dict:
        pairs = value.items()
        return {"dict": [[_encoded(part, arrays, depth + 1) for part in pair] for pair in pairs]}
    if type(value) in (tuple, set, deque):
        name = type(value).__name__
        return {name: [_encoded(one, arrays, depth + 1) for one in value]}
    raise _Unstorable


def _array(value: Any, arrays: list[np.ndarray]) -> dict[str, Any]:
    kind = "jax" if isinstance(value, jax.Array) else type(value).__name__
    usable = not isinstance(value, jax.core.Tracer) and not (kind == "jax" and value.is_deleted())
    if not usable or dtype_name(value.dtype) not in schema.DTYPES:  # a typed key is of none of them
        raise _Unstorable
    arrays.append(np.asarray(value))
    return {"array": len(arrays) - 1, "of": "scalar" if isinstance(value, np.generic) else kind}


def _decoded(value: Any, arrays: tuple[np.ndarray, ...]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        found = arrays[value["array"]]
        of = value.get("of")
        return found[()] if of == "scalar" else jax.numpy.asarray(found) if of == "jax" else found.copy()
    ((kind, content),) = value.items()
    return _KINDS[kind](_decoded(content, arrays))


_KINDS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "dict": lambda pairs: dict(map(tuple, pairs)),
    "tuple": tuple,
    "set": set,
    "deque": deque,
}


def check(found: Any, where: str) -> None:
    """Checks what a file says that callbacks remember.

    Raises:
        Malformed: naming the field.
    """
    specs = schema.list_of(schema.spec)
    schema.record({"arrays": specs, "content": schema.anything}, ("arrays", "content"))(found, where)

    def value(one: Any, field: str) -> None:
        _check(one, len(found["arrays"]), field, 0)

    schema.table_of(schema.table_of(value))(found["content"], f"{where}/content")


def size(found: Mapping[str, Any]) -> int:
    """How many bytes the arrays take."""
    return sum(math.prod(shape) * schema.itemsize(dtype) for dtype, shape in found["arrays"])


def _check(value: Any, arrays: int, field: str, depth: int) -> None:
    if depth > 4 * _DEEPEST:
        raise Malformed(field, "containers in each other", f"at most {_DEEPEST}")
    if isinstance(value, list):
        for i, one in enumerate(value):
            _check(one, arrays, f"{field}/{i}", depth + 1)
    elif isinstance(value, dict):
        _check_tagged(value, arrays, field, depth)


def _check_tagged(value: dict[str, Any], arrays: int, field: str, depth: int) -> None:
    if "array" in value:
        schema.whole(0, max(arrays, 1))(value["array"], f"{field}/array")
        if not arrays:
            raise Malformed(field, "an array", "no array, where none is stored")
        return
    kind = next(iter(value), "")
    if len(value) != 1 or kind not in _KINDS:
        raise Malformed(field, schema.said(value), f"one of {', '.join(_KINDS)}")
    content = value[kind]
    if kind == "float":
        if content not in ("inf", "-inf", "nan"):
            raise Malformed(field, schema.said(content), "inf, -inf or nan")
        return
    schema.list_of(schema.anything)(content, field)
    _check(content, arrays, field, depth + 1)
    if kind == "dict" and not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
        raise Malformed(field, "no pairs", "pairs of key and value")


# --- putting back


def put_back(callbacks: Iterable[Any], memory: Memory, where: str, *, files: bool = True) -> None:
    """Lets callbacks remember what they did; to be called after their `on_train_begin`.

    A callback is found again by its class and its order among those of its class. Only attributes that it
    has, and that hold no text, function or object, are set. `files` tells whether files that callbacks
    write, such as that of CSVLogger, are brought back, too.

    Raises:
        CorruptCheckpointError: if what is stored can't be the memory of such a callback.
    """
    known = dict(_keyed(callbacks))
    for key in memory.content.keys() - known.keys():
        log.info("%s: the memory of callback %s is not used: there is none", where, printable(key))
    for key, callback in known.items():
        try:
            _put(callback, memory.content.get(key, {}), memory.arrays, files=files)
        except CheckpointError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CorruptCheckpointError(
                f"{where}, callbacks/{key}",
                got=f"a memory that {type(callback).__name__} does not take: {type(error).__name__}",
                expected="what it remembered when the checkpoint was written",
                fix="Resume with the callbacks that the run had, or from another step.",
            ) from error


def _put(callback: Any, stored: Mapping[str, Any], arrays: tuple[np.ndarray, ...], *, files: bool) -> None:
    if _has_state(callback):
        if "get_state()" in stored:
            callback.set_state(_decoded(stored["get_state()"], arrays))
        return
    own = _attributes(callback, [])
    for name, value in stored.items():
        if name in own and name != "file" and not isinstance(value, str):
            setattr(callback, name, _decoded(value, arrays))
    special = _special(callback)
    if files and special and isinstance(stored.get("file"), str):
        special[1](callback, stored["file"])


# --- callbacks whose memory is a file


def _rows(logger: Any) -> str:
    if logger.csv_file is not None and not logger.csv_file.closed:
        logger.csv_file.flush()
    path = Path(logger.filename)
    return path.read_bytes().decode() if path.is_file() else ""


def _set_rows(logger: Any, text: str) -> None:
    """The rows that were logged, in a file that `on_train_begin` may have emptied."""
    if logger.csv_file is not None:
        logger.csv_file.close()
    Path(logger.filename).write_bytes(text.encode())
    logger.csv_file = open(logger.filename, "a", newline="")  # noqa: SIM115 - the callback closes it
    logger.append_header, logger.writer = not text, None


_FILES: dict[type, tuple[Callable[[Any], str], Callable[[Any, str], None]]] = {
    keras.callbacks.CSVLogger: (_rows, _set_rows)
}


def _special(callback: Any) -> Any:
    return next((both for kind, both in _FILES.items() if isinstance(callback, kind)), None)
