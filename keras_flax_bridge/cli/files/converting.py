"""What lies in one kind of file or folder, written as another, read back and compared bit for bit."""

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
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.paths import Path, join_path

SUFFIXES = {".keras": "keras", ".weights.h5": "weights.h5", ".safetensors": "safetensors"}
KINDS = ("checkpoint", "flax", *SUFFIXES.values())


class Converted(NamedTuple):
    """What was converted: how many leaves and bytes, what was left out and why, and what else to know."""

    path: FilePath
    kind: str
    leaves: int
    size: int
    left: dict[str, list[str]]
    notes: list[str]


def kind_for(path: FilePath, to: str | None) -> str:
    """The kind of a target: what was asked for, else what its suffix says, else a checkpoint.

    Raises:
        CheckpointError: if the suffix says another kind than was asked for.
    """
    wanted = {kind: suffix for suffix, kind in SUFFIXES.items()}
    by_suffix = next((kind for suffix, kind in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if to is None:
        return by_suffix or "checkpoint"
    if by_suffix != (to if to in wanted else None):
        raise CheckpointError(
            str(path),
            got=f"this name for --to {to}",
            expected=f"one that ends in {wanted[to]}" if to in wanted else "one without the suffix of a file",
            fix="The suffix says what a file is.",
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
    """Writes what lies in `source` as another kind, all or nothing.

    Args:
        source: what was opened.
        path: where to.
        kind: one of `KINDS`.
        model_file: a `.keras` file with the model that the leaves are of, if nothing stored says so.
        layout: of a checkpoint.
        force: whether what lies at `path` may be replaced.

    Raises:
        CheckpointError: if `path` can't be written, or the kind can't hold the leaves.
        StructureMismatchError: if the leaves are not those of the model.
    """
    require_free(path, source=source.path, force=force)
    _require_named(source)
    with working(f"reading {source.path}"):
        # first, since a model may be loaded for it: before the values are in memory as well
        initial = source.initial() if kind == "checkpoint" else {}
        gc.collect()  # models hold themselves
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
    """What is said of leaves that the source lacks."""
    names = ", ".join(map(join_path, initial))
    return [f"not in the source, so as the model starts them: {names}"] if initial else []


def _models(source: Contents, model_file: Any, path: FilePath) -> Callable[[], Any]:
    """What gives the model that the leaves are of, each time a new one."""

    def build() -> Any:
        if model_file is not None:
            return keras_files.load_model(orbax_io.absolute(model_file))
        model = model_for(source)
        if model is None:
            raise CheckpointError(
                str(path),
                got=f"no model config in {source.path}",
                expected="the model that its leaves are of",
                fix="Give it with --model FILE.keras.",
            )
        return model

    return build


def _require_named(source: Contents) -> None:
    if source.unnamed:
        raise CheckpointError(
            str(source.path),
            got=f"names that mean nothing elsewhere: {source.unnamed}",
            expected="leaves by their places in a model",
            fix="Give the model that it is of with --model FILE.keras, or register its classes by --import.",
        )


def _require_equal(draft: FilePath, done: writers.Written, job: writers.Job) -> None:
    """Checks that what was written is what was read, and that each leaf is there or said to be left out."""
    back = _opened(draft, job)
    accounted = {*done.names.values(), *done.left}
    lost = [name for name in job.leaves.specs if name not in accounted]
    lost += [kept for name, kept in done.names.items() if name not in back.specs]
    differing = [done.names[name] for name in unlike(back, done.names, job.leaves)]
    added = [name for name in back.specs if name not in done.names and name not in done.started]
    if lost or differing or added:
        raise CheckpointError(
            str(draft.name),
            got=f"leaves that came back otherwise, or not: {_names([*lost, *differing, *added])}",
            expected="what was read, bit for bit",
            fix="Nothing was written. Another kind of target may hold them.",
        )


def _opened(draft: FilePath, job: writers.Job) -> Contents:
    """What was written; a file of weights alone by the names of the model that it is of."""
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
