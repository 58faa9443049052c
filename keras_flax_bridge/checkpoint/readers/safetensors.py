"""`.safetensors` files: leaves by path, and the config of the model in the header."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.guards import tensors as tensors_module
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.checkpoint.slices import GROUP
from keras_flax_bridge.errors import BridgeError, CheckpointError
from keras_flax_bridge.tree.paths import Flat, Path, join_path, split_path
from keras_flax_bridge.tree.untrusted import records, schema, texts
from keras_flax_bridge.tree.untrusted.records import Record, field
from keras_flax_bridge.tree.untrusted.schema import Malformed

_OURS = "keras_flax_bridge"  # the key of our metadata
_FIX = "The file is damaged, or holds what numpy and jax do not have in common."


@dataclass(frozen=True, kw_only=True)
class Header(Record):
    """The record that this package adds to the header of a file: the config of the model, if it has one."""

    model: Mapping[str, Any] | None = field(schema.optional(schema.table_of(schema.anything)), default=None)


class Tensors(Contents):
    """A file; its arrays are read by their places in it, without the library."""

    def __init__(self, path: FilePath):
        found = tensors_module(path)
        text = found.metadata.get(_OURS, "{}")
        where = f"{path}, __metadata__/{_OURS}"
        header = records.from_json(Header, texts.parsed(text, where, CheckpointError), where, fix=_FIX)
        try:
            self._tensors = _by_path(found.arrays)
        except Malformed as fault:
            raise records.malformed(fault, str(path), fix=_FIX) from fault
        specs = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in self._tensors.items()}
        super().__init__(path, "safetensors file", specs, Metadata(model=header.model))

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        return {path: self._read(path, 0, math.prod(self.specs[path].shape)) for path in paths}

    def _read(self, path: Path, begin: int, count: int) -> np.ndarray:
        """Reads elements of an array in C order; returns the complete array if these are all."""
        tensor, dtype = self._tensors[path], np.dtype(self.specs[path].dtype)
        offset = tensor.begin + begin * dtype.itemsize
        found = np.fromfile(self.path, dtype, count, offset=offset)
        return found.reshape(tensor.shape) if count == math.prod(tensor.shape) else found

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        spec = self.specs[path]
        size, step = math.prod(spec.shape), GROUP // np.dtype(spec.dtype).itemsize
        for begin in range(0, size, step):
            yield self._read(path, begin, min(step, size - begin)).reshape(-1)


def _by_path(arrays: Mapping[str, guards.Tensor]) -> dict[Path, guards.Tensor]:
    """Arrays by path: others do not write ~ in a name as this package does."""
    found: dict[Path, str] = {}
    for name in arrays:
        path = split_path(name)
        if path in found:
            raise Malformed(name, f"the same path as {texts.clipped(found[path])}", "paths that differ")
        found[path] = name
    return {path: arrays[name] for path, name in found.items()}


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
