"""What this package writes beside the leaves of a checkpoint: one table of its fields, checked when read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from keras_flax_bridge.checkpoint.orbax_io.api import MARK, OURS, OURS_SUM, PACKED
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError
from keras_flax_bridge.tree.diff import dtype_name, spec_text
from keras_flax_bridge.tree.paths import Path, split_path
from keras_flax_bridge.tree.untrusted import schema, texts
from keras_flax_bridge.tree.untrusted.schema import Check, Malformed, optional, table_of, table_of_leaves

FORMAT = 1  # the only one there is


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


# every field, and what it must be; a checkpoint may lack any of them
FIELDS: dict[str, Check] = {
    "format": schema.whole(1),
    "versions": table_of(schema.text),
    "leaves": schema.whole(),
    "specs": table_of_leaves(_leaf),  # of the stored tree, by the names on disk
    "empty": table_of_leaves(_empty),
    "packed": table_of_leaves(schema.place),
    "bytes": table_of_leaves(schema.dtype),  # the dtypes of leaves that are stored as bytes
    "checksums": table_of(schema.whole(0, 1 << 32)),
    "model": optional(table_of(schema.anything)),  # checked where Keras builds it
    "no_model": schema.text,
    "weight_map": table_of(schema.anything),  # checked where it is read
    "data": optional(schema.position),
    "grain": optional(schema.whole(0, 1 << 32)),
}
_types = schema.record(FIELDS)


def check(found: Any) -> None:
    """Checks metadata: every field, then the tables of leaves against each other.

    Raises:
        Malformed: naming the field.
    """
    _types(found, "")
    if found.get("format", FORMAT) == FORMAT:
        _require_consistent(found)


def read(folder: FilePath) -> dict[str, Any]:
    """The metadata of a checkpoint as it was written; nothing for one that others wrote.

    Orbax reads damaged metadata as if there were none.

    Raises:
        CorruptCheckpointError: naming the file and the field that is not as this package writes it.
        CheckpointError: if a newer version of this package wrote it.
    """
    mark = folder / MARK
    if not mark.exists():
        return {}
    texts.require_inside(mark, folder)
    custom = _mapping(_mapping(texts.read_json(mark), mark).get("custom_metadata"), mark)
    if OURS not in custom and OURS_SUM not in custom:
        return {}
    text = custom.get(OURS)
    written = isinstance(text, str) and zlib.crc32(text.encode(errors="replace")) == custom.get(OURS_SUM)
    if not written:
        raise _corrupt(mark, Malformed(OURS, "another checksum", "the one that was written"))
    found: dict[str, Any] = texts.parsed(text, f"{mark}, {OURS}")
    _checked(lambda: check(found), mark)
    if found.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            str(mark),
            got=f"format {found['format']}",
            expected=f"format {FORMAT}",
            fix="A newer version of keras-flax-bridge wrote it: update the package.",
        )
    return found


def require_marks(root: FilePath) -> None:
    """Checks the files that Orbax reads, whole, of every step in a root folder when it opens that.

    Raises:
        CorruptCheckpointError: naming the one that is not a file of the step, or is too long.
    """
    for folder in root.iterdir() if root.is_dir() else ():
        mark = folder / MARK
        if mark.is_symlink():
            texts.require_inside(mark, folder)
        if mark.exists():
            texts.require_modest(mark)


def _mapping(value: Any, mark: FilePath) -> dict[str, Any]:
    """A JSON object; none is an empty one."""
    if not isinstance(value, (dict, type(None))):
        raise _corrupt(mark, Malformed("custom_metadata", schema.said(value), "an object"))
    return value or {}


def _checked(check: Callable[[], None], mark: FilePath) -> None:
    try:
        check()
    except Malformed as error:
        raise _corrupt(mark, error) from error


def _require_consistent(found: dict[str, Any]) -> None:
    """Checks the tables of leaves against each other.

    Raises:
        Malformed: naming the field that the others contradict.
    """
    specs, packed, empty = (found.get(field, {}) for field in ("specs", "packed", "empty"))
    stored = {_plain(place): leaf for place, leaf in specs.items() if place != PACKED}
    schema.require_apart((stored, packed, empty), "leaves")
    if len(stored) < len(specs) - (PACKED in specs):
        raise Malformed("specs", "one name twice", "names that differ")
    if "specs" not in found:  # of the first versions: Orbax tells the tree
        return
    unknown = found.get("checksums", {}).keys() - stored.keys() - packed.keys() - empty.keys()
    if unknown:
        raise Malformed(f"checksums/{min(unknown)}", "a checksum of no leaf", "one of a leaf")


def _plain(place: str) -> str:
    """The path of a leaf that lies at a place in the stored tree."""
    return place.replace("%2E", ".").replace("%25", "%") if "%" in place else place


def require_buffer(found: Mapping[str, Any], specs: Mapping[Path, Any], buffer: Any, mark: FilePath) -> None:
    """Checks what the metadata says of bytes against the arrays that hold them.

    Args:
        found: the metadata.
        specs: the leaves of the stored tree, by path.
        buffer: the array of the packed leaves; None if there is none.
        mark: the file of the metadata.

    Raises:
        CorruptCheckpointError: naming the leaf that the bytes can't be of.
    """

    def check() -> None:
        for name, dtype in found.get("bytes", {}).items():
            spec = specs.get(split_path(name))
            if dtype_name(getattr(spec, "dtype", None)) != f"uint{8 * schema.itemsize(dtype)}":
                raise Malformed(f"bytes/{name}", "a leaf that is not stored as its bytes", "one that is")
        packed = found.get("packed", {})
        if packed and not is_buffer(buffer):
            raise Malformed(PACKED, spec_text(buffer), "an array of bytes, in which packed leaves are")
        schema.require_within(packed, buffer.shape[0] if packed else 0, "packed")

    _checked(check, mark)


def is_buffer(spec: Any) -> bool:
    """Whether an array may be that of the packed leaves."""
    return dtype_name(getattr(spec, "dtype", None)) == "uint8" and len(spec.shape) == 1


def _corrupt(mark: FilePath, fault: Malformed) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        str(mark),
        got=f"{texts.clipped(fault.field, 200)}: {fault.got}",
        expected=fault.expected,
        fix="The metadata is damaged, or was not written by this package: take another step.",
    )
