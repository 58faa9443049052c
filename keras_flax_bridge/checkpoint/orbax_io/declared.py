"""What the files of a tree declare, looked at before Orbax reads any of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from keras_flax_bridge.checkpoint import guards
from keras_flax_bridge.checkpoint.orbax_io.api import LEAVES, FilePath, speaking, tensorstore
from keras_flax_bridge.errors import CorruptCheckpointError
from keras_flax_bridge.tree.untrusted import texts

MANIFEST = "manifest.ocdbt"  # the file of the database in which the arrays of a tree usually are
_ARRAYS = (".zarray", "zarr.json")  # the files of metadata, of the two formats of arrays
_ARRAY_METADATA = "array_metadatas"  # a folder, with one file of each process that wrote
_SIDES = ("_sharding", _ARRAY_METADATA)  # what Orbax reads whole beside them
_AT_ONCE = 1000  # files of metadata


class Declared(NamedTuple):
    """The bytes that all arrays of a tree declare, and those of the files that hold them."""

    declared: int
    stored: int


class Files:
    """The files of a tree, looked at once.

    Args:
        path: the checkpoint, for messages.
        item: the folder of the tree.
    """

    def __init__(self, path: FilePath, item: FilePath):
        self._path, self._item = path, item
        self._found: Declared | None = None

    def checked(self) -> Declared:
        """What they declare, each checked before Orbax reads it.

        Raises:
            CorruptCheckpointError: naming the file or the array that is not as Orbax writes it.
        """
        if self._found is None:
            with speaking(self._path, "reading what arrays declare", CorruptCheckpointError):
                self._found = checked_files(self._item)
        return self._found

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk.

        Raises:
            CheckpointError: if they declare far more.
        """
        guards.require_stored(str(self._path), *self.checked())


def checked_files(item: FilePath) -> Declared:
    """Checks every file of a tree that somebody else reads whole, and what each array declares.

    Raises:
        CorruptCheckpointError: naming the file or the array that is not as Orbax writes it.
    """
    for name in _SIDES:
        for file in _files(item / name):
            texts.require_modest(file)
    found = [*_in_files(item), *(_in_database(item) if (item / MANIFEST).is_file() else ())]
    declared = sum(guards.declared_bytes(texts.parsed(text, where), where) for where, text in found)
    return Declared(declared, sum(file.stat().st_size for file in _files(item)))


def require_readable(folder: FilePath) -> None:
    """Checks an item that nobody asked for, and whose metadata Orbax reads nevertheless.

    Raises:
        CorruptCheckpointError: naming what is not as Orbax writes it.
    """
    texts.require_files(folder)
    if (folder / LEAVES).is_file():
        require_names(folder, texts.read_json(folder / LEAVES))
        checked_files(folder)


def require_names(item: FilePath, leaves: Any) -> None:
    """Checks that no leaf has the name of a folder elsewhere: Orbax makes paths of names.

    Args:
        item: the folder of the tree.
        leaves: what Orbax's list of the leaves holds.

    Raises:
        CorruptCheckpointError: naming the leaf.
    """
    found = leaves if isinstance(leaves, dict) else {}
    if (item / MANIFEST).is_file() and found.get("use_ocdbt") is not False:
        return  # there names are those of a database
    for name in _names(found.get("tree_metadata")):
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise CorruptCheckpointError(
                str(item),
                got=f"a leaf of the name {texts.clipped(name, 200)}",
                expected="names of leaves that are no paths out of the checkpoint",
                fix="Nothing was read. The checkpoint was made to read other files: take another.",
            )


def _names(tree: Any) -> Iterator[str]:
    """What the leaves are called in the storage; what is malformed Orbax refuses."""
    for leaf in tree.values() if isinstance(tree, Mapping) else ():
        keys = leaf.get("key_metadata") if isinstance(leaf, dict) else None
        listed = keys if isinstance(keys, list) else []
        yield ".".join(str(key.get("key")) for key in listed if isinstance(key, dict))


def key_kinds(item: FilePath) -> dict[str, str]:
    """The implementations of typed keys, by the names of the arrays that hold their data.

    Entries of another form are passed over: Orbax, which reads them too, says what is wrong with them.

    Raises:
        CorruptCheckpointError: naming the file that can't be read.
    """
    found = {}
    for file in _files(item / _ARRAY_METADATA):
        texts.require_modest(file)
        whole = texts.read_json(file)
        entries = whole.get("array_metadatas") if isinstance(whole, dict) else None
        for listed in entries if isinstance(entries, list) else ():
            entry = _object(listed, "array_metadata")
            name, kind = entry.get("param_name"), _object(entry, "ext_metadata").get("random_key_impl")
            if isinstance(name, str) and isinstance(kind, str):
                found[name] = kind
    return found


def _object(found: Any, name: str) -> dict[str, Any]:
    """An object in an object; an empty one where there is none."""
    inner = found.get(name) if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else {}


def _files(folder: FilePath) -> Iterator[FilePath]:
    """A file, or those below a folder; none where nothing is."""
    if folder.is_file():
        yield folder
    for here, _, names in os.walk(folder):
        yield from (FilePath(here, name) for name in names)


def _in_files(item: FilePath) -> Iterator[tuple[str, str]]:
    for file in _files(item):
        if file.name in _ARRAYS:
            yield str(file), texts.read_text(file)


def _in_database(item: FilePath) -> Iterator[tuple[str, str]]:
    store = tensorstore().KvStore.open({"driver": "ocdbt", "base": _base(item)}).result()
    keys = _keys(store, item)
    for begin in range(0, len(keys), _AT_ONCE):
        some = keys[begin : begin + _AT_ONCE]
        for key, read in zip(some, [store.read(key) for key in some], strict=True):
            text = _value(read)
            if text:
                where = f"{item}, {texts.clipped(key, 200)}"
                yield where, texts.decoded(text, where)


def _keys(store: Any, item: FilePath) -> list[str]:
    """The metadata of the arrays; where the list is damaged, of those that Orbax would look for."""
    try:
        found = [key.decode(errors="replace") for key in store.list().result()]
    except Exception:  # tensorstore raises many kinds
        leaves = texts.read_json(item / LEAVES)
        tree = leaves.get("tree_metadata") if isinstance(leaves, dict) else None
        return [f"{name}/{file}" for name in _names(tree) for file in _ARRAYS]
    return [key for key in found if key.endswith(_ARRAYS)]


def _value(read: Any) -> bytes:
    """What lies under a key; nothing where it can't be read, which Orbax can't do either."""
    try:
        return bytes(read.result().value)
    except Exception:  # as above
        return b""


def _base(item: FilePath) -> dict[str, Any]:
    return {"driver": "file", "path": f"{item}/"}
