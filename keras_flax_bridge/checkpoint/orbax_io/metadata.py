"""What this package writes beside the leaves of a checkpoint: one record, checked when it is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint import assets, callback_memory
from keras_flax_bridge.checkpoint.orbax_io.api import LOGS, MARK, OURS, OURS_SUM, PACKED, speaking
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.tree.diff import dtype_name, spec_text
from keras_flax_bridge.tree.paths import Path, split_path
from keras_flax_bridge.tree.untrusted import records, schema, texts
from keras_flax_bridge.tree.untrusted.records import Record, field
from keras_flax_bridge.tree.untrusted.schema import Malformed, optional, table_of, table_of_leaves


def _leaf(value: Any, field: str) -> None:
    """A leaf of the stored tree: an array, or a value of the type of a number or a text."""
    if isinstance(value, list):
        schema.spec(value, field)
    elif not (value is None or isinstance(value, (int, float)) or value == ""):
        raise Malformed(field, schema.said(value), "[dtype, shape], or a number or a text")


def _empty(value: Any, field: str) -> None:
    """An array without elements: only those are not stored."""
    schema.spec(value, field)
    if 0 not in value[1]:
        raise Malformed(field, "the shape of an array with elements", "an array without elements")


@dataclass(frozen=True, kw_only=True)
class Metadata(Record):
    """What this package writes beside the leaves of a checkpoint; a checkpoint may lack any of it.

    Attributes:
        versions: of the packages that wrote it.
        leaves: how many there are.
        specs: dtype and shape of each array of the stored tree, a number of the type of any other leaf, by
            the names on disk; None for the first versions, where Orbax tells the tree.
        empty: dtypes and shapes of the leaves without elements, which Orbax can't store.
        packed: where in the array of small leaves each of them begins, its dtype and its shape.
        bytes: dtypes of leaves that are stored as whole numbers of the same size.
        keys: the implementations of typed keys, whose data are stored, by name.
        checksums: of leaves, by name.
        model: the config of the Keras model, or a dict of configs; checked where Keras builds it.
        no_model: why there is no config.
        weight_map: the `WeightMap` of a native module; checked where it is read.
        data: the position of a data iterator, as `data_positions.position` gives it.
        grain: the checksum of the position of a Grain iterator, which Orbax stores.
        note: what the user stored beside it; no part of this package reads it.
        callbacks: what callbacks remember, but for their arrays, as `Memory.to_json` gives it.
        callback_arrays: the checksum of those arrays.
        assets: size and checksum of each file of a layer, as `Assets.to_json` gives them.
    """

    versions: Mapping[str, str] | None = field(table_of(schema.text), default=None)
    leaves: int | None = field(schema.whole(), default=None)
    specs: Mapping[str, Any] | None = field(table_of_leaves(_leaf), default=None)
    empty: Mapping[str, Any] = field(table_of_leaves(_empty), default_factory=dict)
    packed: Mapping[str, Any] = field(table_of_leaves(schema.place), default_factory=dict)
    bytes: Mapping[str, str] = field(table_of_leaves(schema.dtype), default_factory=dict)
    keys: Mapping[str, str] = field(table_of_leaves(schema.text), default_factory=dict)
    checksums: Mapping[str, int] = field(table_of(schema.whole(0, 1 << 32)), default_factory=dict)
    model: Mapping[str, Any] | None = field(optional(table_of(schema.anything)), default=None)
    no_model: str | None = field(schema.text, default=None)
    weight_map: Mapping[str, Any] | None = field(table_of(schema.anything), default=None)
    data: Mapping[str, Any] | None = field(optional(schema.position), default=None)
    grain: int | None = field(optional(schema.whole(0, 1 << 32)), default=None)
    note: Mapping[str, Any] | None = field(optional(table_of(schema.anything)), default=None)
    callbacks: Mapping[str, Any] | None = field(optional(callback_memory.check), default=None)
    callback_arrays: int | None = field(optional(schema.whole(0, 1 << 32)), default=None)
    assets: Mapping[str, Any] | None = field(optional(assets.check), default=None)

    @classmethod
    def require_consistent(cls, found: Mapping[str, Any]) -> None:
        """Checks the tables of leaves against each other.

        Raises:
            Malformed: naming the field that the others contradict.
        """
        specs, packed, empty = (found.get(name, {}) for name in ("specs", "packed", "empty"))
        stored = {_plain(place): leaf for place, leaf in specs.items() if place != PACKED}
        schema.require_apart((stored, packed, empty), "leaves")
        if len(stored) < len(specs) - (PACKED in specs):
            raise Malformed("specs", "one name twice", "names that differ")
        if "specs" not in found:
            return
        for table, what in {"checksums": "a checksum", "keys": "a kind of keys"}.items():
            unknown = found.get(table, {}).keys() - stored.keys() - packed.keys() - empty.keys()
            if unknown:
                raise Malformed(f"{table}/{min(unknown)}", f"{what} of no leaf", "one of a leaf")


def written(metadata: Metadata) -> dict[str, str | int]:
    """What lies in the file that Orbax writes last: a text, and a checksum of it.

    Orbax would not keep every JSON type as it is.
    """
    text = json.dumps(records.to_json(metadata))
    return {OURS: text, OURS_SUM: zlib.crc32(text.encode())}


def read(folder: FilePath) -> Metadata | None:
    """The metadata of a checkpoint as it was written; None for one that others wrote.

    Orbax reads damaged metadata as if there were none.

    Raises:
        CorruptCheckpointError: naming the file and the field that is not as this package writes it.
        CheckpointError: if a newer version of this package wrote it.
    """
    mark = folder / MARK
    if not mark.exists():
        return None
    texts.require_inside(mark, folder)
    custom = _mapping(_mapping(texts.read_json(mark), mark).get("custom_metadata"), mark)
    if OURS not in custom and OURS_SUM not in custom:
        return None
    text = custom.get(OURS)
    whole = isinstance(text, str) and zlib.crc32(text.encode(errors="replace")) == custom.get(OURS_SUM)
    if not whole:
        raise _corrupt(mark, Malformed(OURS, "another checksum", "the one that was written"))
    found = texts.parsed(text, f"{mark}, {OURS}")
    return records.from_json(Metadata, found, str(mark), fix=_FIX, error=CorruptCheckpointError)


def read_note(folder: FilePath) -> dict[str, Any]:
    """What the user stored beside a checkpoint, as JSON types; empty if nothing.

    Raises:
        CorruptCheckpointError: if the metadata is damaged.
    """
    with speaking(folder, "reading the metadata", CorruptCheckpointError):
        texts.require_files(folder)
        found = read(folder)
    return dict(found.note or {}) if found else {}


def require_marks(root: FilePath) -> None:
    """Checks the files that Orbax reads, whole, of every step in a root folder when it opens that.

    Raises:
        CorruptCheckpointError: naming the one that is not a file of the step, is too long, or is not as
            Orbax writes it.
    """
    for folder in root.iterdir() if root.is_dir() else ():
        mark, logs = folder / MARK, folder / LOGS / LOGS
        for entry in (mark, logs.parent, logs):
            if entry.is_symlink():
                texts.require_inside(entry, folder)
        if mark.exists():
            texts.require_modest(mark)
        if logs.exists():
            _require_mapping(texts.read_json(logs), logs, "the logged values")


def _mapping(value: Any, mark: FilePath) -> dict[str, Any]:
    """A JSON object; none is an empty one."""
    _require_mapping(value, mark, "custom_metadata")
    return value or {}


def _require_mapping(value: Any, file: FilePath, field: str) -> None:
    if not isinstance(value, (dict, type(None))):
        raise _corrupt(file, Malformed(field, schema.said(value), "an object"))


def _plain(place: str) -> str:
    """The path of a leaf that lies at a place in the stored tree."""
    return place.replace("%2E", ".").replace("%25", "%") if "%" in place else place


def require_buffer(found: Metadata, specs: Mapping[Path, Any], buffer: Any, mark: FilePath) -> None:
    """Checks what the metadata says of bytes against the arrays that hold them.

    Args:
        found: the metadata.
        specs: the leaves of the stored tree, by path.
        buffer: the array of the packed leaves; None if there is none.
        mark: the file of the metadata.

    Raises:
        CorruptCheckpointError: naming the leaf that the bytes can't be of.
    """

    try:
        for name, dtype in found.bytes.items():
            spec = specs.get(split_path(name))
            if dtype_name(getattr(spec, "dtype", None)) != f"uint{8 * schema.itemsize(dtype)}":
                raise Malformed(f"bytes/{name}", "a leaf that is not stored as its bytes", "one that is")
        if found.packed and not is_buffer(buffer):
            raise Malformed(PACKED, spec_text(buffer), "an array of bytes, in which packed leaves are")
        schema.require_within(found.packed, buffer.shape[0] if found.packed else 0, "packed")
    except Malformed as fault:
        raise _corrupt(mark, fault) from fault


def is_buffer(spec: Any) -> bool:
    """Whether an array may be that of the packed leaves."""
    return dtype_name(getattr(spec, "dtype", None)) == "uint8" and len(spec.shape) == 1


_FIX = "The metadata is damaged, or was not written by this package: take another step."


def _corrupt(mark: FilePath, fault: Malformed) -> CheckpointError:
    return records.malformed(fault, str(mark), fix=_FIX, error=CorruptCheckpointError)
