"""`.safetensors` files: a leaf by its path as text, and the config of the model beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from keras_flax_bridge import _paths
from keras_flax_bridge._contents.base import Contents, unreadable
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
        safe_open = _library().safe_open
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                specs = {_paths.split(name): _spec(one) for name, one in slices.items()}
                metadata = json.loads((file.metadata() or {}).get(_OURS, "{}"))
        except Exception as error:  # the library has a kind of its own, and raises others
            expected = "a safetensors file of dtypes that numpy and jax have in common"
            raise unreadable(path, error, expected, "Is it whole?") from error
        super().__init__(path, "safetensors file", specs, metadata)

    def values(self) -> _paths.Flat:
        with _library().safe_open(self.path, framework="np") as file:
            return {path: file.get_tensor(_paths.join(path)) for path in self.specs}


def _spec(one: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(one.get_shape()), _DTYPES[one.get_dtype()])


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
