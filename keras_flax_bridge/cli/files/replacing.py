"""Replaces files and folders atomically."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.errors import StepAlreadyExistsError


def require_free(path: Path, *, source: Path, force: bool) -> None:
    """Checks that a path may be written, and that only one file or checkpoint is replaced.

    Raises:
        StepAlreadyExistsError: if the path exists.
        ArgumentError: if it is `source`, or neither a file nor a checkpoint.
    """
    fix = "Make the folder first."
    require(path.parent.is_dir(), str(path), "a parent folder that does not exist", "one that does", fix)
    nested = source == path or path in source.parents or source in path.parents
    fix = "Use a target beside the source."
    require(not nested, str(path), f"a path that contains, is or is in {source}", "another path", fix)
    if not path.exists():
        return
    if not force:
        raise StepAlreadyExistsError(
            str(path), got="something that exists", expected="a new path", fix="--force replaces it."
        )
    one = path.is_file() or orbax_io.is_checkpoint(path)
    fix = "--force replaces one file or one checkpoint, never a folder of several things."
    require(one, str(path), "a folder that is not a checkpoint", "a file or one checkpoint to replace", fix)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary path on the same disk as `path`, which is renamed to `path` on success."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        _swap(folder / path.name, path, folder / "before")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(draft: Path, path: Path, aside: Path) -> None:
    replaced = path.exists()
    if replaced:
        path.rename(aside)
    try:
        draft.rename(path)
    except OSError:
        if replaced:
            aside.rename(path)
        raise
