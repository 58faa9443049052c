"""The files of layers, such as vocabularies, as they lie beside a state: one array of bytes, and an index."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.guards import limits
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.schema import Malformed
from keras_flax_bridge.tree.untrusted.texts import clipped

Files = Mapping[str, bytes]  # contents by path
_SIZE = schema.whole(0, limits.ASSETS + 1)
_CHECKSUM = schema.whole(0, 1 << 32)


@dataclass(frozen=True)
class Assets:
    """The files of the layers of some models.

    Attributes:
        files: by the name of the model, ``""`` for a single one, and by Keras's path of the file.
    """

    files: Mapping[str, Files] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any] | None:
        """The size and the checksum of each file, in the order in which `buffer` has them; None for none."""
        return {n: {p: _row(c) for p, c in files.items()} for n, files in self.files.items() if files} or None

    def buffer(self) -> np.ndarray | None:
        """All files one after the other; None if there is no byte."""
        joined = b"".join(content for files in self.files.values() for content in files.values())
        return np.frombuffer(joined, np.uint8) if joined else None


NO_ASSETS = Assets()


def _row(content: bytes) -> list[int]:
    return [len(content), zlib.crc32(content)]


def of_models(models: Mapping[str, Any]) -> Assets:
    """The files of the layers of models, by name.

    Raises:
        CheckpointError: if they are more than a reader takes.
        Exception: any error of a layer's `save_assets`.
    """
    found = Assets({name: keras_internals.assets_of(model) for name, model in models.items()})
    index = found.to_json()
    if index is not None:
        try:
            check(index, "assets")
        except Malformed as fault:
            raise CheckpointError(
                fault.field,
                got=fault.got,
                expected=fault.expected,
                fix="Let save_assets write fewer or smaller files.",
            ) from fault
    return found


def check(value: Any, field: str) -> None:
    """Checks an index: paths that stay in their folder, and sizes within the limits.

    Raises:
        Malformed: naming the field.
    """
    schema.table_of(schema.table_of(_file))(value, field)
    rows = [(path, row) for files in value.values() for path, row in files.items()]
    if len(rows) > limits.MEMBERS:
        raise Malformed(field, f"{len(rows):,} files", f"at most {limits.MEMBERS:,}")
    for path, _ in rows:
        require_path(path, field)
    for files in value.values():
        schema.require_apart([files], field)
    if size(value) > limits.ASSETS:
        raise Malformed(field, f"{size(value):,} bytes", f"at most {limits.ASSETS:,}")


def _file(value: Any, field: str) -> None:
    if type(value) is not list or len(value) != 2:
        raise Malformed(field, schema.said(value), "[size, checksum]")
    _SIZE(value[0], field)
    _CHECKSUM(value[1], field)


def require_path(path: str, field: str) -> None:
    """Checks that the path of a file is relative and plain.

    Raises:
        Malformed: if it could lead out of the folder.
    """
    parts = path.split("/")
    odd = not {"", ".", ".."}.isdisjoint(parts) or "\\" in path or ":" in parts[0] or limits.is_odd(path)
    if odd or any(len(part.encode(errors="replace")) > limits.FILE_NAME for part in parts):
        raise Malformed(field, f"the name {clipped(path, 200)}", "a relative path inside the assets")


def size(index: Mapping[str, Any]) -> int:
    """The bytes of all files of an index."""
    return sum(row[0] for files in index.values() for row in files.values())


def taken_apart(index: Mapping[str, Any], buffer: np.ndarray) -> tuple[Assets, dict[str, str]]:
    """The files in a buffer, and what is wrong with those that are damaged, by name."""
    at, damaged = 0, {}
    found: dict[str, dict[str, bytes]] = {}
    for name, files in index.items():
        for path, (length, checksum) in files.items():
            content = buffer[at : at + length].tobytes()
            at += length
            found.setdefault(name, {})[path] = content
            if _row(content) != [length, checksum]:
                damaged[shown(name, path)] = "other bytes than were written"
    return Assets(found), damaged


def names(index: Mapping[str, Any]) -> dict[str, int]:
    """The size of every file, by the name that reports show."""
    return {shown(n, path): row[0] for n, files in index.items() for path, row in files.items()}


def shown(name: str, path: str) -> str:
    """The name of a file in reports: below ``assets``, and below its model's name if there are several."""
    return "/".join(("assets", *([name] if name else []), path))


def load(model: Any, assets: Assets, where: Any) -> None:
    """Lets the layers of a model, or of a dict of models, read their files.

    Raises:
        CheckpointError: if a layer can't read its files, or files are left for which there is no layer.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    left = [name for name, files in assets.files.items() if files and name not in models]
    if left:
        raise CheckpointError(
            str(where), got=f"assets of models {left}", expected=f"of {list(models)}", fix="Use another step."
        )
    for name, one in models.items():
        keras_internals.load_assets(one, assets.files.get(name, {}), where)


def holders(like: Any) -> dict[str, Any]:
    """The models of a target of a restore whose layers have files, by name."""
    models = like if isinstance(like, dict) else {"": like}
    kept = {name: one for name, one in models.items() if isinstance(one, keras.Model)}
    return {name: one for name, one in kept.items() if keras_internals.has_assets(one)}


def fill(models: Mapping[str, Any], assets: Assets, where: Any) -> None:
    """Lets the layers of given models read the stored files, where their own differ.

    A model for which no files are stored is left as it is. Where a layer fails, those of its model have
    their own files again.

    Raises:
        CheckpointError: if a layer can't read its files, or files are left for which there is no layer.
    """
    for name, model in models.items():
        files = assets.files.get(name)
        if files:
            with kept(model, where) as own:
                if own != files:
                    keras_internals.load_assets(model, files, where)


@contextmanager
def kept(model: Any, where: Any) -> Iterator[Files | None]:
    """Context after which the layers of a model have their own files again if it raises a CheckpointError."""
    before = _written(model)
    try:
        yield before
    except CheckpointError:
        if before is not None:
            keras_internals.load_assets(model, before, where)
        raise


def _written(model: Any) -> Files | None:
    """What the layers of a model would write; None if they can't, as before they have a vocabulary."""
    try:
        return keras_internals.assets_of(model)
    except Exception:  # of a user's save_assets
        return None
