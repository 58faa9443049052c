"""Folders of Hugging Face: an index that says in which `.safetensors` file each array lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from keras_flax_bridge.checkpoint.guards.limits import MEMBERS
from keras_flax_bridge.checkpoint.guards.tensors import Tensor, tensors
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, listing, shortened
from keras_flax_bridge.tree.untrusted import schema, texts

_MAP, _METADATA = "weight_map", "metadata"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors", re.ASCII)  # of a file beside the index
_FIX = "Nothing was read. Get all files of the folder once more, from the one who wrote them."


class Part(NamedTuple):
    """An array, and the file that it lies in."""

    file: FilePath
    tensor: Tensor


def shards(index: FilePath) -> dict[str, Part]:
    """The arrays of all files of an index, whose headers were checked; no array is read.

    Raises:
        CheckpointError: if the index or a file is malformed, if a file is missing or not beside the index, or
            if the files have other arrays than the index says.
    """
    where = _weight_map(index)
    files = sorted({*where.values()})
    if len(files) > MEMBERS:
        raise _refusal(index, _MAP, f"{len(files):,} files", f"at most {MEMBERS:,}")
    found = {name: tensors(_beside(index, name)).arrays for name in files}
    parts = {
        array: Part(index.parent / file, tensor)
        for file, arrays in found.items()
        for array, tensor in arrays.items()
        if where.get(array) == file
    }
    missing = [f"{array}  not in {where[array]}" for array in where if array not in parts]
    others = [f"{a}  only in {f}" for f, arrays in found.items() for a in arrays if where.get(a) != f]
    if missing or others:
        raise _refusal(index, _MAP, listing("other arrays than the files have", [*missing, *others]), "those")
    return parts


def _weight_map(index: FilePath) -> Mapping[str, str]:
    found = texts.read_json(index)
    if not isinstance(found, dict):
        raise _refusal(index, "the index", schema.said(found), "a JSON object")
    where, metadata = found.get(_MAP), found.get(_METADATA, {})
    if not isinstance(where, dict) or not isinstance(metadata, dict):
        got = schema.said(metadata) if isinstance(where, dict) else schema.said(where)
        field = _METADATA if isinstance(where, dict) else _MAP
        raise _refusal(index, field, got, "a JSON object")
    for array, file in where.items():
        if not isinstance(file, str) or not _NAME.fullmatch(file):
            got = schema.said(file) if not isinstance(file, str) else repr(shortened(file))
            raise _refusal(index, f"{_MAP}/{array}", got, "the name of a .safetensors file beside the index")
    return where


def _beside(index: FilePath, name: str) -> FilePath:
    """The path of a file of an index."""
    path = index.parent / name
    if not path.exists():
        raise _refusal(index, _MAP, f"{name}, which is not there", "files beside the index")
    texts.require_inside(path, index.parent)
    return path


def _refusal(index: FilePath, field: str, got: Any, expected: str) -> CheckpointError:
    return CorruptCheckpointError(f"{index}: {shortened(field)}", got=got, expected=expected, fix=_FIX)
