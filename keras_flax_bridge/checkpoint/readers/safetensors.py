"""`.safetensors` files: leaves by path, and the config of the model in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.guards import tensors as tensors_module
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.readers.arrays import Arrays, by_path
from keras_flax_bridge.errors import BridgeError, CheckpointError
from keras_flax_bridge.tree.paths import Path, join_path
from keras_flax_bridge.tree.untrusted import records, schema, texts
from keras_flax_bridge.tree.untrusted.records import Record, field

_OURS = "keras_flax_bridge"  # the key of our metadata
_FIX = "The file is damaged, or holds what numpy and jax do not have in common."


@dataclass(frozen=True, kw_only=True)
class Header(Record):
    """The record that this package adds to the header of a file: the config of the model, if it has one."""

    model: Mapping[str, Any] | None = field(schema.optional(schema.table_of(schema.anything)), default=None)


class Tensors(Arrays):
    """A file, or the files of an index; arrays are read by their places in them, without the library."""

    def __init__(self, path: FilePath):
        if guards.kind(path) == guards.INDEX:
            header, found = Header(), guards.shards(path)
        else:
            checked = tensors_module(path)
            header = _header(path, checked.metadata)
            found = {name: guards.Part(path, tensor) for name, tensor in checked.arrays.items()}
        self._parts = by_path(path, found)
        kind = "safetensors file" if path.name.endswith(guards.TENSORS) else "safetensors files of an index"
        tensors = {name: part.tensor for name, part in self._parts.items()}
        super().__init__(path, kind, tensors, Metadata(model=header.model))

    def read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Elements of an array in C order; the array in its shape if these are all."""
        (file, tensor), spec = self._parts[path], self.specs[path]
        offset = tensor.begin + begin * np.dtype(spec.dtype).itemsize
        found = np.fromfile(file, spec.dtype, count, offset=offset)
        return found.reshape(tensor.shape) if count == spec.size else found


def _header(path: FilePath, metadata: Mapping[str, str]) -> Header:
    """What this package wrote into the header of a file; empty for the file of others."""
    where = f"{path}, __metadata__/{_OURS}"
    text = texts.parsed(metadata.get(_OURS, "{}"), where, CheckpointError)
    return records.from_json(Header, text, where, fix=_FIX)


def save_tensors(path: FilePath, flat: Mapping[Path, np.ndarray], header: Header) -> None:
    """Writes a file.

    Raises:
        CheckpointError: naming the leaves of a dtype that the format lacks.
    """
    _library()
    import safetensors.numpy

    unknown = [join_path(p) for p, leaf in flat.items() if str(leaf.dtype) not in guards.DTYPES.values()]
    if unknown:
        raise CheckpointError(
            str(path),
            got=f"leaves of a dtype that it lacks: {', '.join(unknown)}",
            expected=f"dtypes of safetensors ({', '.join(guards.DTYPES.values())})",
            fix="Convert to a checkpoint, or to flax.",
        )
    tensors = {join_path(name): np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in flat.items()}
    safetensors.numpy.save_file(tensors, path, metadata={_OURS: json.dumps(records.to_json(header))})


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
