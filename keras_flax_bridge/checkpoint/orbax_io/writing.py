"""Writes one checkpoint: a tree of nested dicts with plain names, and our metadata beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.checkpoint import checksums, packing
from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.callback_memory import NO_MEMORY, Memory
from keras_flax_bridge.checkpoint.data_positions import checksum, is_grain
from keras_flax_bridge.checkpoint.leaf_kinds import AS_WORDS, words
from keras_flax_bridge.checkpoint.orbax_io.api import (
    ARRAYS,
    ASSETS,
    CALLBACKS,
    DATA,
    PACKED,
    STATE,
    FilePath,
    context_of,
    failed,
    legacy,
    ocp,
    speaking,
)
from keras_flax_bridge.checkpoint.orbax_io.background import OPERATIONS, folder_of
from keras_flax_bridge.checkpoint.orbax_io.metadata import Metadata
from keras_flax_bridge.checkpoint.orbax_io.metadata import written as metadata_text
from keras_flax_bridge.checkpoint.orbax_io.names import encode
from keras_flax_bridge.checkpoint.orbax_io.unfinished import Unfinished
from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.paths import Flat, Path, join_path, nest_paths


def save(
    path: FilePath,
    flat: Mapping[Path, Any],
    data: Any,
    metadata: Metadata,
    *,
    packed: bool,
    assets: Assets = NO_ASSETS,
) -> None:
    """Writes one checkpoint at `path` and returns when it is on disk."""
    items, custom = written(flat, data, metadata, packed=packed, assets=assets)
    unfinished, needed = Unfinished(path), size_on_disk(flat)
    try:
        with folder_of(path).turn():  # two threads that write one folder do so one after the other
            with OPERATIONS.starting():
                first = OPERATIONS.folder_first(path.parent, needed)
                items[STATE] = _uncopied(items[STATE])  # who waits for the save can't change them
                with saving_context(needed, folder_first=first):
                    response = ocp().save_checkpointables_async(path, items, custom_metadata=custom)
            unfinished.hold()
            response.result()
        unfinished.release()
    except Exception as error:  # Orbax raises many kinds; nothing half written stays
        unfinished.remove()
        raise failed(path, "saving", error, needed=needed) from error


def size_on_disk(flat: Mapping[Path, Any]) -> int:
    """About how many bytes a checkpoint of these leaves takes."""
    return sum(getattr(leaf, "nbytes", 8) for leaf in flat.values())


class _Uncopied(np.ndarray):
    """An array that Orbax writes as it is; it copies others first, to go on meanwhile."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def _uncopied(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.view(_Uncopied) if type(leaf) is np.ndarray else leaf, tree)


def save_plain(path: FilePath, tree: Any) -> None:
    """Writes a tree as Flax code does, with Orbax's `StandardCheckpointer`, and nothing of ours beside it."""
    with speaking(path, "saving"), OPERATIONS.starting(), legacy().StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _uncopied(tree))


def saving_context(size: int, *, folder_first: bool = True) -> Any:
    """Orbax's options for a save of so many bytes; see `Operations.folder_first`."""
    return context_of(
        asynchronous={"create_directories_asynchronously": not folder_first},
        saving={
            "ocdbt_target_data_file_size": packing.file_size(size),
            "use_compression": False,  # it saves 7 % on float weights, and costs most of the time
        },
    )


def written(
    flat: Mapping[Path, Any],
    data: Any,
    metadata: Metadata,
    *,
    packed: bool,
    memory: Memory = NO_MEMORY,
    assets: Assets = NO_ASSETS,
) -> tuple[dict[str, Any], dict[str, str | int]]:
    """What Orbax stores, and our metadata with what it says of the leaves."""
    arrays, files = memory.buffer(), assets.buffer()
    host = checksums.on_host(flat)
    stored = {path: leaf for path, leaf in flat.items() if not is_empty(leaf)}
    empty = {join_path(p): (str(leaf.dtype), leaf.shape) for p, leaf in flat.items() if p not in stored}
    index: packing.Index = {}
    if packed:
        buffer, index, stored = packing.pack(stored, host)
    plain, viewed = _as_words(stored)
    tree = {encode(path): leaf for path, leaf in plain.items()}
    if index or not tree:
        tree[(PACKED,)] = buffer if index else np.zeros(1, np.uint8)  # Orbax stores no empty tree
    ours = dataclasses.replace(
        metadata,
        leaves=len(flat),
        empty=empty,
        packed=index,
        bytes=viewed,
        specs={join_path(place): _spec(leaf) for place, leaf in tree.items()},
        checksums=checksums.checksums(host),
        grain=checksum(data.get_state()) if is_grain(data) else None,
        callbacks=memory.to_json(),
        callback_arrays=None if arrays is None else checksums.checksum(arrays),
        assets=assets.to_json(),
    )
    items = {STATE: nest_paths(tree), **({DATA: data} if is_grain(data) else {})}
    if arrays is not None:
        items[CALLBACKS] = {ARRAYS: arrays}
    if files is not None:
        items[ASSETS] = {ARRAYS: files}
    return items, metadata_text(ours)


def is_empty(leaf: Any) -> bool:
    """Whether a leaf has no elements."""
    return 0 in np.shape(leaf)  # Orbax can't store those: they lie in our metadata


def _spec(leaf: Any) -> Any:
    """Dtype and shape of an array; of a number or a text, a value of its type."""
    if hasattr(leaf, "dtype"):
        return dtype_name(leaf.dtype), leaf.shape
    kinds = (int, float, str)  # Orbax refuses others
    return next((kind() for kind in kinds if isinstance(leaf, kind)), None)


def _as_words(flat: Flat) -> tuple[Flat, dict[str, str]]:
    """Leaves of a dtype that Orbax can't store as whole numbers, and the dtype of each such leaf by path."""
    dtypes = {path: dtype_name(getattr(leaf, "dtype", None)) for path, leaf in flat.items()}
    viewed = {path: dtype for path, dtype in dtypes.items() if dtype in AS_WORDS}
    plain = {
        p: np.ascontiguousarray(leaf).view(words(leaf.dtype)).reshape(leaf.shape) if p in viewed else leaf
        for p, leaf in flat.items()
    }
    return plain, {join_path(path): dtype for path, dtype in viewed.items()}
