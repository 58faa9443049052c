"""`.safetensors` files: a leaf by its path as text, and the config of the model beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from keras_flax_bridge import _paths, _schema, _texts
from keras_flax_bridge._contents.base import Contents, unreadable
from keras_flax_bridge._schema import Malformed
from keras_flax_bridge.errors import BridgeError, CheckpointError

_OURS = "keras_flax_bridge"  # the key of our metadata
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"},
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
}


class Tensors(Contents):
    """A file."""

    def __init__(self, path: FilePath):
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            described = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
            text = (file.metadata() or {}).get(_OURS, "{}")
        metadata = _texts.parsed(text, f"{path}, __metadata__/{_OURS}", CheckpointError)
        try:
            _METADATA(metadata, _OURS)
            self._names = _by_path(described)
            specs = {p: _spec(described[name], name) for p, name in self._names.items()}
        except Malformed as error:
            raise CheckpointError(
                str(path),
                got=f"{_texts.clipped(error.field, 200)}: {error.got}",
                expected=error.expected,
                fix="The file is damaged, or holds what numpy and jax do not have in common.",
            ) from error
        super().__init__(path, "safetensors file", specs, metadata)

    def values(self) -> _paths.Flat:
        with _opened(self.path) as file:
            return {path: file.get_tensor(name) for path, name in self._names.items()}


_METADATA = _schema.record({"model": _schema.optional(_schema.table_of(_schema.anything))})


@contextlib.contextmanager
def _opened(path: FilePath) -> Iterator[Any]:
    """The file, for the library.

    Raises:
        CheckpointError: if the library can't read it.
    """
    safe_open = _library().safe_open
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except Exception as error:  # the library has a kind of its own, and raises others
        raise unreadable(path, error, "a safetensors file", "Is it whole?") from error


def _by_path(names: Iterable[str]) -> dict[_paths.Path, str]:
    """Names as they are in the file, by path: others do not write ~ as this package does."""
    found: dict[_paths.Path, str] = {}
    for name in names:
        path = _paths.split(name)
        if path in found:
            raise Malformed(name, f"the same path as {_texts.clipped(found[path])}", "paths that differ")
        found[path] = name
    return found


def _spec(described: tuple[str, Any], name: str) -> jax.ShapeDtypeStruct:
    dtype, shape = described
    if dtype not in _DTYPES:
        raise Malformed(name, f"the dtype {_texts.clipped(dtype)}", f"one of {', '.join(_DTYPES)}")
    return jax.ShapeDtypeStruct(tuple(shape), _DTYPES[dtype])


def save_tensors(path: FilePath, flat: Mapping[_paths.Path, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes a file.

    Raises:
        CheckpointError: naming the leaves of a dtype that the format lacks.
    """
    _library()
    import safetensors.numpy

    unknown = [_paths.join(p) for p, leaf in flat.items() if str(leaf.dtype) not in _DTYPES.values()]
    if unknown:
        raise CheckpointError(
            str(path),
            got=f"leaves of a dtype that it lacks: {', '.join(unknown)}",
            expected=f"dtypes of safetensors ({', '.join(_DTYPES.values())})",
            fix="Convert to a checkpoint, or to flax.",
        )
    tensors = {
        _paths.join(name): np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in flat.items()
    }
    safetensors.numpy.save_file(tensors, path, metadata={_OURS: json.dumps(dict(metadata))})


def _library() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise BridgeError(
            ".safetensors",
            got="no safetensors",
            expected="the package safetensors",
            fix="Install it: pip install 'keras-flax-bridge[safetensors]'.",
        ) from error
    return safetensors
