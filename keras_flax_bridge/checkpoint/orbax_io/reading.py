"""Reads one checkpoint, ours or one that other Orbax code wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.checkpoint import checksums, packing
from keras_flax_bridge.checkpoint.data_positions import checksum, is_grain, set_grain, set_position
from keras_flax_bridge.checkpoint.groups import is_large
from keras_flax_bridge.checkpoint.orbax_io import declared, metadata, pieces
from keras_flax_bridge.checkpoint.orbax_io.api import (
    DATA,
    LEAVES,
    MARK,
    PACKED,
    STATE,
    FilePath,
    context_of,
    load,
    ocp,
    read_beside,
    speaking,
    stored_tree,
)
from keras_flax_bridge.checkpoint.orbax_io.background import OPERATIONS
from keras_flax_bridge.checkpoint.orbax_io.metadata import Metadata
from keras_flax_bridge.checkpoint.orbax_io.names import decode
from keras_flax_bridge.checkpoint.orbax_io.placing import host_bytes, is_on_cpu, on_host, placed
from keras_flax_bridge.checkpoint.progress import working
from keras_flax_bridge.checkpoint.slices import GROUP, flat_pieces
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError, listing, said
from keras_flax_bridge.tree.leaves import KeyData, on_disk, size_of
from keras_flax_bridge.tree.paths import (
    Flat,
    Path,
    fill_tree,
    flatten_tree,
    join_path,
    nest_paths,
    split_path,
)
from keras_flax_bridge.tree.untrusted import texts

_FOREIGN = ("pytree", "default")  # what Orbax, its manager and Keras's callback call the one tree
_READ_AHEAD = 1 << 27  # bytes
_LONG = 1 << 30  # bytes, which take long enough to be shown


class Stored:
    """What lies in one checkpoint: the specs of its leaves and our metadata, read without the values."""

    def __init__(self, path: FilePath):
        self.path = path
        with speaking(path, "reading the metadata", CorruptCheckpointError):
            texts.require_files(path)
            self._root, self._item = _item(path)
            self._files = declared.Files(path, self._item_folder)
            found = metadata.read(self._root)
            self.ours = found is not None  # whether this package wrote it
            self.metadata = found or Metadata()
            self._tree = self._specs()  # others keep lists in it, which Orbax wants to see again
            flat = flatten_tree(self._tree)
        _require_tree(path, flat, ours=self.ours)
        self._index = self.metadata.packed
        # only beside an index: a leaf that a user called so is written otherwise, and read as any
        self._buffer: Any = flat.pop((PACKED,), None) if self.ours else None
        self._places = {decode(place) if self.ours else place: place for place in flat}
        self.specs = {path: flat[place] for path, place in self._places.items()}
        self._empty = {split_path(n): _spec(*s) for n, s in self.metadata.empty.items()}
        self._viewed = {split_path(n): dtype for n, dtype in self.metadata.bytes.items()}
        metadata.require_buffer(self.metadata, self.specs, self._buffer, self._root / MARK)
        self.specs.update({**self._empty, **packing.specs(self._index)})
        self._require_complete()
        self.specs.update({p: _spec(dtype, self.specs[p].shape) for p, dtype in self._viewed.items()})
        keys = self._key_kinds()
        self.specs.update({p: KeyData(self.specs[p], impl) for p, impl in keys.items() if p in self.specs})

    def _specs(self) -> Any:
        """The stored tree, with specs for leaves. Where we wrote them, no array has to be opened for them."""
        declared.require_names(self._item_folder, texts.read_json(self._leaves))
        if self.metadata.specs is None:
            return self._described()
        specs = self.metadata.specs.items()
        return nest_paths({split_path(p): _spec(*s) if isinstance(s, list) else s for p, s in specs})

    def _key_kinds(self) -> dict[Path, str]:
        """The implementations of typed keys: in the metadata of this package, or beside the arrays."""
        if self.ours:
            return {split_path(name): kind for name, kind in self.metadata.keys.items()}
        kinds = declared.key_kinds(self._item_folder)
        names = {path: ".".join(place) for path, place in self._places.items()}
        return {path: kinds[name] for path, name in names.items() if name in kinds}

    def _described(self) -> Any:
        """The stored tree as Orbax describes it; what it opens for that, each array, is checked first."""
        self._files.checked()
        for folder in read_beside(self._root, self._item):
            declared.require_readable(folder)
        return stored_tree(self._root, self._item)

    @property
    def _leaves(self) -> FilePath:
        """Orbax's list of the leaves, which it reads whole."""
        return (self._root if self._item is None else self._root / self._item) / LEAVES

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk, for who reads them into no arrays of his own.

        Raises:
            CheckpointError: if they declare far more.
        """
        self._files.require_stored()

    def start_at_zero(self, specs: Mapping[Path, Any]) -> None:
        """Adds leaves that the writer had no need to store: they are zeros."""
        self._empty.update(specs)
        self.specs.update(specs)

    def shardings(self) -> dict[Path, tuple[tuple[Any, ...], dict[str, int]]]:
        """How leaves lay on a mesh when they were written: spec and sizes of its axes, where it is known."""
        with speaking(self.path, "reading how leaves lay on devices", CorruptCheckpointError):
            tree = self._described()
            found: dict[Path, Any] = {
                place: getattr(leaf, "sharding_metadata", None) for place, leaf in flatten_tree(tree).items()
            }
            return {
                path: (tuple(found[place].partition_spec), _axes(found[place]))
                for path, place in self._places.items()
                if hasattr(found.get(place), "partition_spec")
            }

    def json(self, item: str) -> Any:
        """What lies in an item that isn't the tree, as JSON types; None if there is no such item."""
        if not (self.path / item).is_dir():
            return None
        with speaking(self.path, f"reading {item}", CorruptCheckpointError), OPERATIONS.loading():
            for file in (self.path / item).iterdir():  # Orbax reads one of them, its version says which
                texts.require_bounded(texts.read_text(file), str(file))
            return ocp().load_checkpointables(self.path, {item: None})[item]

    def _require_complete(self) -> None:
        """Checks that nothing of the metadata is lost."""
        written = self.metadata.leaves
        leaves = len(self.specs) or 1 if written is None else written
        if len(self.specs) != leaves:
            raise CorruptCheckpointError(
                str(self.path),
                got=f"metadata that can't be read, or only of {len(self.specs)} leaves",
                expected=f"metadata of {leaves} leaves",
                fix="The checkpoint is damaged: take another step.",
            )

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, placed as their targets say.

        Raises:
            CorruptCheckpointError: naming the leaves that can't be read.
        """
        values, failed = self.load_each(targets)
        self._refuse(failed)
        return values

    def _load(self, targets: Mapping[Path, Any]) -> Flat:
        small = {path: target for path, target in targets.items() if join_path(path) in self._index}
        wanted = {p: t for p, t in targets.items() if p not in small and p not in self._empty}
        wanted = {p: host_bytes(t) if p in self._viewed else t for p, t in wanted.items()}
        taken = {p: on_host(t) for p, t in wanted.items() if is_on_cpu(t)}
        wanted |= taken
        part = self._buffer_part(small) if small else None  # of a long buffer only what is needed
        loaded, whole = self._read(wanted, packed=bool(small) and part is None)
        buffer, start = part or (whole, 0)
        host = {p: np.zeros(t.shape, t.dtype) for p, t in targets.items() if p in self._empty}
        host |= packing.unpack(buffer, self._index, small, start)
        host |= {p: loaded.pop(p).view(self.specs[p].dtype) for p in self._viewed if p in loaded}
        host |= {p: loaded.pop(p) for p in taken}
        return {**loaded, **placed(host, targets)}

    def _read(self, targets: Mapping[Path, Any], *, packed: bool) -> tuple[Flat, Any]:
        """Leaves out of Orbax's tree, and the array of the packed ones; all others are left out."""
        asked = {self._places[path]: target for path, target in targets.items()}
        if packed:
            asked[(PACKED,)] = np.broadcast_to(np.zeros((), np.uint8), self._buffer.shape)
        if not asked:
            return {}, None
        tree = fill_tree(self._tree, {place: asked.get(place, ...) for place in flatten_tree(self._tree)})
        with speaking(self.path, "restoring"), _reading(self.path, asked.values()), OPERATIONS.loading():
            found = flatten_tree(load(self._root, tree, self._item))
        values = {path: found[place] for path, place in self._places.items() if place in asked}
        return values, found.get((PACKED,))

    def _buffer_part(self, paths: Iterable[Path]) -> tuple[np.ndarray, int] | None:
        """The bytes of some packed leaves, and where they begin; None where all bytes are read at once."""
        if not is_large(self._buffer):
            return None
        begin, end = packing.span(self._index, paths)
        array = pieces.opened(self._item_folder, (PACKED,), self._buffer) if end - begin <= GROUP else None
        if array is None:
            return None
        with speaking(self.path, "restoring"):
            return array[begin:end].read().result(), begin

    @property
    def packed(self) -> set[Path]:
        """The leaves that are together in one array."""
        return {*map(split_path, self._index)}

    @property
    def _item_folder(self) -> FilePath:
        return self._root if self._item is None else self._root / self._item

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """A large leaf in one-dimensional parts, in C order; it is never in memory as a whole.

        Raises:
            CorruptCheckpointError: if it can't be read, or, after the last part, if its checksum differs.
        """
        total = checksums.Running()
        for part in flat_pieces(self._pieces(path)):
            total.add(part)
            yield part
            del part
        self._refuse(self._differing(path, total))

    def damaged_large(self, path: Path) -> dict[str, str]:
        """What is wrong with a large leaf, by path; it is read in parts."""
        total = checksums.Running()
        try:
            for part in flat_pieces(self._pieces(path)):
                total.add(part)
                del part
        except CheckpointError as error:
            return {join_path(path): str(error.got)}
        return self._differing(path, total)

    def _differing(self, path: Path, total: checksums.Running) -> dict[str, str]:
        name, value = join_path(path), total.value()
        written = self.metadata.checksums.get(name, value)
        return {} if value == written else {name: checksums.difference(value, written)}

    def _pieces(self, path: Path) -> Iterator[np.ndarray]:
        self._files.checked()  # checked first
        spec = self.specs[path]
        kept = host_bytes(spec) if path in self._viewed else spec
        place = self._places.get(path)
        array = pieces.opened(self._item_folder, place, kept) if place else None
        if array is None:  # in a format that only Orbax knows
            yield np.asarray(on_disk(self.load({path: on_host(spec)})[path]))
            return
        with speaking(self.path, f"reading {join_path(path)}", CorruptCheckpointError):
            for piece in pieces.pieces(array):
                yield piece.view(spec.dtype)
                del piece

    def load_each(self, targets: Mapping[Path, Any]) -> tuple[Flat, dict[str, str]]:
        """The values that can be read, and why the others can't, by path."""
        self._files.checked()  # checked first, and only once for all leaves
        try:
            return self._load(targets), {}
        except CheckpointError as error:
            if len(targets) == 1:
                return {}, {join_path(path): str(error.got) for path in targets}
        parts = [self.load_each({path: target}) for path, target in targets.items()]
        values = {path: leaf for read, _ in parts for path, leaf in read.items()}
        return values, {path: why for _, failed in parts for path, why in failed.items()}

    def damaged(self, values: Flat) -> dict[str, str]:
        """What is wrong with values that were read, by path."""
        return checksums.damaged(values, self.metadata.checksums)

    def require_whole(self, values: Flat) -> None:
        """Checks values against the checksums that were written.

        Raises:
            CorruptCheckpointError: naming every leaf that differs.
        """
        self._refuse(self.damaged(values))

    def _refuse(self, damaged: Mapping[str, str]) -> None:
        if damaged:
            raise CorruptCheckpointError(
                str(self.path),
                got=listing("damaged leaves", [f"{path}  {what}" for path, what in damaged.items()]),
                expected="the bytes that were written",
                fix="Take another step; kfb.verify(path) says which are whole.",
            )

    def damaged_data(self) -> dict[str, str]:
        """What is wrong with the position of a Grain iterator; of several processes, with the first's."""
        written = self.metadata.grain
        if written is None:
            return {}
        try:
            files = (self.path / DATA).glob("process_0-of-*.json")
            whole = [checksum(texts.read_json(file)) for file in files] == [written]
        except (OSError, CheckpointError) as error:
            return {DATA: f"{type(error).__name__}: {said(error, 200)}"}
        return {} if whole else {DATA: "another position than was written"}

    def load_data(self, iterator: Any) -> None:
        """Sets a data iterator to the position that was stored.

        Raises:
            CheckpointError: if none was stored, or one of another kind.
            CorruptCheckpointError: if it is damaged.
        """
        stored = self.metadata.data
        there = (self.path / DATA).is_dir() if is_grain(iterator) else stored is not None
        if not there:
            raise CheckpointError(
                str(self.path),
                got=f"a checkpoint without the position of a {type(iterator).__name__}",
                expected="one that was saved with data=",
                fix="Restore without data=, and position the iterator yourself.",
            )
        self._refuse(self.damaged_data() if is_grain(iterator) else {})
        with speaking(self.path, "restoring the data iterator"):
            if stored is not None:
                set_position(iterator, stored)
            else:
                set_grain(iterator, self.path / DATA)


@contextmanager
def _reading(path: FilePath, targets: Iterable[Any]) -> Iterator[None]:
    """Where much is read it is shown, and what is read but not placed yet is a small part of the whole."""
    sizes = [size_of(target) for target in targets]
    size, memory = sum(sizes), {}
    with ExitStack() as stack:
        if size >= _LONG:  # counting what is read takes time
            memory["read_concurrent_bytes"] = max(_READ_AHEAD, 2 * max(sizes), size // 8)
            stack.enter_context(working(f"reading {size / 1e9:.1f} GB from {path}"))
        stack.enter_context(context_of(memory=memory))
        yield


def trees_in(path: FilePath) -> tuple[list[str], bool]:
    """The names of several trees in a checkpoint of others, and whether one of them is the usual one."""
    if (path / LEAVES).is_file():
        return [], False
    with speaking(path, "reading the metadata", CorruptCheckpointError):
        texts.require_files(path)
        found = sorted(f.name for f in path.iterdir() if f.is_dir() and (f / LEAVES).is_file())
        if len(found) < 2 or metadata.read(path) is not None:
            return [], False
    return found, not {STATE, *_FOREIGN}.isdisjoint(found)


def _item(path: FilePath) -> tuple[FilePath, str | None]:
    """The folder of the checkpoint, and the name of the item that holds the tree; None if it does itself.

    Raises:
        CheckpointError: if there is none, or several that could be meant.
    """
    if (path / LEAVES).is_file():
        return (path, None) if (path / MARK).is_file() else (path.parent, path.name)
    folders = sorted(f.name for f in path.iterdir() if f.is_dir())
    trees = [name for name in folders if (path / name / LEAVES).is_file()]
    known = [name for name in (STATE, *_FOREIGN) if name in folders]
    found = known or trees
    if known or len(trees) == 1:
        return path, found[0]
    raise CheckpointError(
        str(path),
        got=f"a checkpoint that holds {trees or folders or 'nothing'}",
        expected="one tree of arrays",
        fix="Give the folder of the item that is meant." if trees else "Is it the folder of a checkpoint?",
    )


def _require_tree(path: FilePath, flat: Mapping[Path, Any], *, ours: bool) -> None:
    """Checks that leaves have names, and are not those of a packed checkpoint whose index is lost."""
    if not ours and metadata.is_buffer(flat.get((PACKED,))):
        raise CorruptCheckpointError(
            str(path),
            got="packed leaves without the metadata that tells where each of them is",
            expected="the metadata that this package wrote",
            fix="The checkpoint is damaged: take another step.",
        )
    if () in flat:
        raise CheckpointError(
            str(path),
            got="a checkpoint of one leaf without a name",
            expected="a tree of arrays",
            fix="Read it with orbax.checkpoint, and save it in a dict.",
        )


def _spec(dtype: str, shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _axes(sharding: Any) -> dict[str, int]:
    return dict(zip(sharding.axis_names, map(int, sharding.shape), strict=True))
