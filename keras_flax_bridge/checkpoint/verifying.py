"""Compares every leaf with its stored checksum, a few at a time, and counts those without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from keras_flax_bridge.checkpoint import guards, orbax_io, presets
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.groups import groups, is_large
from keras_flax_bridge.checkpoint.guards import archive as archive_module
from keras_flax_bridge.checkpoint.locating import candidates
from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.errors import CheckpointError, printed
from keras_flax_bridge.state.report import counted, listed
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.paths import Path, join_path
from keras_flax_bridge.tree.reports import Table, table_of
from keras_flax_bridge.tree.types import PathLike

OURS, ZIP = "checksums in the checkpoint", "the CRC-32 of the zip archive"


class VerifyRow(NamedTuple):
    """A leaf that could not be verified.

    Attributes:
        path: of the leaf; of a file inside an archive its name; ``""`` where nothing could be read.
        status: ``damaged`` or ``unchecked``.
        what: the problem; ``""`` for a leaf without a checksum.
    """

    path: str
    status: str
    what: str


@words.doors()
class VerifyReport(NamedTuple):
    """The result of `verify`.

    Attributes:
        path: the file, or the folder of the checkpoint.
        leaves: how many leaves it holds.
        damaged: what is wrong, by the path of the leaf or the name of a file inside an archive; by
            ``""`` if nothing could be read.
        unchecked: paths of leaves for which no checksum was written.
        checked: how many leaves match their checksum.
        by: the kind of checksums; ``""`` if there are none.

    Example:
        >>> damaged = {"params/dense/bias": "checksum 0, not 1"}
        >>> print(VerifyReport(FilePath("/runs/7"), 3, damaged, (), 2))
        /runs/7: 3 leaves, 2 checked, 0 unchecked, 1 damaged
          params/dense/bias  checksum 0, not 1
    """

    path: FilePath
    leaves: int
    damaged: dict[str, str]
    unchecked: tuple[str, ...]
    checked: int = 0
    by: str = ""

    @property
    def ok(self) -> bool:
        """Whether every leaf was compared with a checksum, there is at least one, and nothing is damaged."""
        return 0 < self.leaves == self.checked and not self.damaged and not self.unchecked

    @property
    def rows(self) -> tuple[VerifyRow, ...]:
        """One row for each leaf that is damaged, then one for each that has no checksum."""
        damaged = [VerifyRow(path, "damaged", what) for path, what in self.damaged.items()]
        return (*damaged, *(VerifyRow(path, "unchecked", "") for path in self.unchecked))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        counts = {"leaves": self.leaves, "checked": self.checked}
        found = {"damaged": dict(self.damaged), "unchecked": list(self.unchecked), "by": self.by}
        return {"path": str(self.path), "ok": self.ok, **counts, **found}

    def __str__(self) -> str:
        lines = [f"  {path}  {what}" for path, what in self.damaged.items()]
        return printed([self._head(), *lines, *self._notes()])

    def _head(self) -> str:
        head = f"{self.path}: {counted(self.leaves, 'leaf')}"
        if self.ok:
            return f"{head}, 0 unchecked, whole{f', by {self.by}' if self.by != OURS else ''}"
        unchecked, damaged = len(self.unchecked), len(self.damaged)
        return f"{head}, {self.checked} checked, {unchecked} unchecked, {damaged} damaged"

    def _notes(self) -> list[str]:
        if self.unchecked:
            return [self._unchecked()]
        return [] if self.leaves else ["no leaf was read: not verified"]

    def _unchecked(self) -> str:
        has = "has" if len(self.unchecked) == 1 else "have"
        said = f"{len(self.unchecked)} of {counted(self.leaves, 'leaf')} {has} no checksum: not verified"
        return f"{said} ({listed(self.unchecked)})"

    def _table(self) -> Table:
        return table_of(self._head(), VerifyRow._fields, self.rows, self._notes())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def verified(place: FilePath) -> VerifyReport:
    """The report of a checkpoint, or of a file."""
    look = _of_folder if place.is_dir() else _FILES[guards.kind(place)]
    try:
        return look(place)
    except CheckpointError as error:  # refused, or too damaged to be read
        where = error.where.removeprefix(str(place)).removeprefix(": ")
        return VerifyReport(place, 0, {where: str(error.got)}, ())


def _of_preset(folder: FilePath) -> VerifyReport:
    """The arrays of a preset of KerasHub, which carries no checksums."""
    files = presets.weight_files(folder)
    names = tuple(f"{file.name}/{name}" for file in files for name in _names(file))
    return VerifyReport(folder, len(names), {}, names)


def _of_folder(folder: FilePath) -> VerifyReport:
    """The leaves of a checkpoint or a preset; where others stored several trees, of all of them."""
    if presets.is_preset(folder):
        return _of_preset(folder)
    items, _ = orbax_io.trees_in(folder)
    if not items:
        return _of_checkpoint(folder)
    reports = {item: _of_checkpoint(folder / item) for item in items}
    damaged = {f"{item}/{name}": why for item, one in reports.items() for name, why in one.damaged.items()}
    unchecked = tuple(f"{item}/{name}" for item, one in reports.items() for name in one.unchecked)
    return VerifyReport(folder, sum(one.leaves for one in reports.values()), damaged, unchecked)


def _of_checkpoint(folder: FilePath) -> VerifyReport:
    stored = orbax_io.Stored(folder)
    stored.require_stored()
    written = stored.metadata.checksums
    damaged: dict[str, str] = {}
    for group in groups(stored.specs, stored.packed):
        damaged.update(_damaged(stored, group))
    names = [join_path(path) for path in stored.specs]
    unchecked = tuple(name for name in names if name not in written and name not in damaged)
    checked = len(names) - len(unchecked) - sum(name in damaged for name in names)
    damaged |= {**stored.damaged_data(), **orbax_io.damaged_memory(folder), **orbax_io.damaged_assets(stored)}
    return VerifyReport(folder, len(names), damaged, unchecked, checked, OURS if checked else "")


def _damaged(stored: Any, group: list[Path]) -> dict[str, str]:
    """The damaged leaves of a group; a large leaf is read separately, in parts."""
    if is_large(stored.specs[group[0]]):
        damaged: dict[str, str] = stored.damaged_large(group[0])
        return damaged
    read, failed = stored.load_each({path: orbax_io.on_host(stored.specs[path]) for path in group})
    return {**failed, **stored.damaged(read)}


def _of_npz(path: FilePath) -> VerifyReport:
    """The arrays of an `.npz` file: the archive has a checksum of each."""
    with guards.npz(path) as found:
        damaged = found.archive.damaged()
        return VerifyReport(path, len(found.arrays), damaged, (), len(found.arrays) - len(damaged), ZIP)


def _of_archive(path: FilePath) -> VerifyReport:
    """The arrays of a `.keras` file: the archive has a checksum of the one file in which they are."""
    with archive_module(path) as archive:
        damaged = archive.damaged()
    if not damaged:
        guards.config(path)
    names = tuple(_names(path)) if guards.WEIGHTS not in damaged else ()
    return VerifyReport(path, len(names), damaged, (), len(names), ZIP)


def _of_file(path: FilePath) -> VerifyReport:
    """The arrays of a file that carries no checksum."""
    names = tuple(_names(path))
    return VerifyReport(path, len(names), {}, names)


def _names(path: FilePath) -> Iterator[str]:
    with guards.weights(path) as weights:
        yield from weights.arrays


def _of_arrays(names: Callable[[FilePath], Iterable[str]]) -> Callable[[FilePath], VerifyReport]:
    """The report of a file of arrays without checksums."""

    def look(path: FilePath) -> VerifyReport:
        found = tuple(names(path))
        return VerifyReport(path, len(found), {}, found)

    return look


_FILES = {
    guards.KERAS: _of_archive,
    guards.H5: _of_file,
    guards.TENSORS: _of_arrays(lambda path: guards.tensors(path).arrays),
    guards.NPZ: _of_npz,
    guards.MSGPACK: _of_arrays(lambda path: map(join_path, guards.packed(path))),
    guards.INDEX: _of_arrays(guards.shards),
}


@words.door
def verify(path: PathLike, *, step: int | None = None) -> VerifyReport:
    """Reads every leaf and compares it with the checksum that was written, a few leaves at a time.

    A leaf without a checksum counts as unchecked: so do all leaves of checkpoints that other Orbax code
    wrote, and of ``.weights.h5`` and ``.safetensors`` files. The arrays of a ``.keras`` file are
    compared with the CRC-32 of the zip archive, which covers all of them.

    Args:
        path: a checkpoint, a root folder of steps, or a ``.keras``, ``.weights.h5`` or
            ``.safetensors`` file.
        step: which step of a root folder; None for the newest.

    Returns:
        A report that counts checked, unchecked and damaged leaves, and names the latter two. It is
        `ok` only if every leaf was checked and nothing is damaged.

    Raises:
        CheckpointError: if there is no checkpoint and no such file.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from keras_flax_bridge import save
        >>> path = tempfile.mkdtemp() + "/weights"
        >>> save(path, {"a": jnp.arange(3)})
        >>> verify(path).ok
        True
    """
    file = orbax_io.absolute(path)
    if file.is_file() and guards.kind(file):
        fix = "Leave step= out: a file holds one state."
        require(step is None, str(file), f"step={step} with a file", "a root folder", fix)
        return verified(file)
    return verified(candidates(path, step)[0])
