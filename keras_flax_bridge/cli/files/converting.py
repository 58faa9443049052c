"""Writes one kind of file or folder as another, reads it back and compares it bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import keras_files, orbax_io
from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.progress import working
from keras_flax_bridge.checkpoint.readers import Contents, model_for, opened
from keras_flax_bridge.cli.files import writers
from keras_flax_bridge.cli.files.comparing import unlike
from keras_flax_bridge.cli.files.leaves import Leaves
from keras_flax_bridge.cli.files.replacing import beside, require_free
from keras_flax_bridge.errors import CheckpointError, printed
from keras_flax_bridge.state.report import counted
from keras_flax_bridge.tree.paths import Path, join_path
from keras_flax_bridge.tree.reports import Table, table_of

SUFFIXES = {".keras": "keras", ".weights.h5": "weights.h5", ".safetensors": "safetensors"}
KINDS = ("checkpoint", "flax", *SUFFIXES.values())


class LeftOut(NamedTuple):
    """A leaf that the target can't hold, and why."""

    path: str
    why: str


class Converted(NamedTuple):
    """The result of a conversion.

    Attributes:
        path: the file or the folder that was written.
        kind: one of `KINDS`.
        leaves: how many leaves it holds.
        size: their bytes.
        left: paths of omitted leaves, by reason.
        notes: what else to know.

    Example:
        >>> left = {"Keras's files hold no seeds": ["seed"]}
        >>> print(Converted(FilePath("a.keras"), "keras", 2, 60, left, []))
        a.keras: keras, 2 leaves, 60 bytes, read back the same
        left out: seed (Keras's files hold no seeds)
    """

    path: FilePath
    kind: str
    leaves: int
    size: int
    left: dict[str, list[str]]
    notes: list[str]

    @property
    def rows(self) -> tuple[LeftOut, ...]:
        """One row for each omitted leaf."""
        return tuple(LeftOut(path, why) for why, paths in self.left.items() for path in paths)

    @property
    def ok(self) -> bool:
        """True: `convert` raises if the result does not read back the same."""
        return True

    def to_json(self) -> dict[str, Any]:
        """The conversion as JSON types."""
        head = {"path": str(self.path), "ok": self.ok, "kind": self.kind}
        return {**head, "leaves": self.leaves, "bytes": self.size, "left_out": self.left, "notes": self.notes}

    def __str__(self) -> str:
        left = [f"left out: {', '.join(paths)} ({why})" for why, paths in self.left.items()]
        return printed([self._head(), *left, *self._notes()])

    def _head(self) -> str:
        leaves = counted(self.leaves, "leaf")
        return f"{self.path}: {self.kind}, {leaves}, {self.size:,} bytes, read back the same"

    def _notes(self) -> list[str]:
        return [f"note: {note}" for note in self.notes]

    def _table(self) -> Table:
        return table_of(self._head(), ("left out", "why"), self.rows, self._notes())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def kind_for(path: FilePath, to: str | None) -> str:
    """The kind of a target: as requested, otherwise by its suffix, otherwise a checkpoint.

    Raises:
        CheckpointError: if the suffix is that of a different kind than requested.
    """
    wanted = {kind: suffix for suffix, kind in SUFFIXES.items()}
    by_suffix = next((kind for suffix, kind in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if to is None:
        return by_suffix or "checkpoint"
    if by_suffix != (to if to in wanted else None):
        raise CheckpointError(
            str(path),
            got=f"this name for --to {to}",
            expected=f"one that ends in {wanted[to]}" if to in wanted else "a name without a file suffix",
            fix="The suffix determines the format.",
        )
    return to


def convert(
    source: Contents,
    path: FilePath,
    kind: str,
    *,
    model_file: Any = None,
    layout: str = "tree",
    force: bool = False,
) -> Converted:
    """Writes the leaves of `source` as another kind, all or nothing.

    Args:
        source: the opened file or checkpoint.
        path: where to.
        kind: one of `KINDS`.
        model_file: a `.keras` file with the model of the leaves, if `source` has no model config.
        layout: of a checkpoint.
        force: whether an existing `path` may be replaced.

    Raises:
        CheckpointError: if `path` can't be written, or the kind can't hold the leaves.
        StructureMismatchError: if the leaves are not those of the model.
    """
    require_free(path, source=source.path, force=force)
    _require_named(source)
    with working(f"reading {source.path}"):
        # first, since a model may be loaded for it: before the values are in memory as well
        initial = source.initial() if kind == "checkpoint" else {}
        gc.collect()  # models contain reference cycles
        give_back()
    leaves = Leaves(source, initial)
    job = writers.Job(leaves, _models(source, model_file, path), model_file is not None, layout)
    with beside(path) as draft:
        with working(f"writing {path}"):
            done = writers.WRITERS[kind](draft, job)
        gc.collect()
        give_back()
        with working("reading it back"):
            _require_equal(draft, done, job)
    left = _by_reason({**leaves.strange, **done.left})
    kept = list(done.names.values())
    notes = [*_started({**initial, **dict.fromkeys(sorted(done.started))}), *done.notes]
    notes += [source.note] if source.note else []
    return Converted(path, kind, len(kept), leaves.size(kept), left, notes)


def _started(initial: Mapping[Path, Any]) -> list[str]:
    """A note on leaves that the source lacks."""
    names = ", ".join(map(join_path, initial))
    return [f"not in the source, so as the model starts them: {names}"] if initial else []


def _models(source: Contents, model_file: Any, path: FilePath) -> Callable[[], Any]:
    """A function that returns the model of the leaves, a new one each time."""

    def build() -> Any:
        if model_file is not None:
            return keras_files.load_model(orbax_io.absolute(model_file))
        model = model_for(source)
        if model is None:
            raise CheckpointError(
                str(path),
                got=f"no model config in {source.path}",
                expected="the model that its leaves belong to",
                fix="Pass it with --model FILE.keras.",
            )
        return model

    return build


def _require_named(source: Contents) -> None:
    if source.unnamed:
        raise CheckpointError(
            str(source.path),
            got=f"names that are valid in this file only: {source.unnamed}",
            expected="leaves by structural key",
            fix="Pass its model with --model FILE.keras, or register its classes with --import MODULE.",
        )


def _require_equal(draft: FilePath, done: writers.Written, job: writers.Job) -> None:
    """Checks that the written leaves equal the source, and that omitted leaves are reported."""
    back = _opened(draft, job)
    accounted = {*done.names.values(), *done.left}
    lost = [name for name in job.leaves.specs if name not in accounted]
    lost += [kept for name, kept in done.names.items() if name not in back.specs]
    differing = [done.names[name] for name in unlike(back, done.names, job.leaves)]
    added = [name for name in back.specs if name not in done.names and name not in done.started]
    if lost or differing or added:
        raise CheckpointError(
            str(draft.name),
            got=f"leaves that differ or are missing when read back: {_names([*lost, *differing, *added])}",
            expected="what was read, bit for bit",
            fix="Nothing was written. Another kind of target may hold them.",
        )


def _opened(draft: FilePath, job: writers.Job) -> Contents:
    """Opens the written file; for a weights file, with the model that provides its names."""
    if not draft.name.endswith(".weights.h5"):
        return opened(draft)
    found: list[Contents] = []
    keras_internals.filled(job.model, lambda model: found.append(opened(draft, model=model)))
    return found[-1]


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(join_path, paths))


def _by_reason(left: Mapping[Path, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in left.items():
        found.setdefault(why, []).append(join_path(name))
    return found
