"""What is said of a run that an exception ends: what of it is on disk, and what is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.errors import printable_lines


@contextlib.contextmanager
def noting(manager: CheckpointManager | None, error: BaseException) -> Iterator[None]:
    """While it holds, the last whole step is saved; if that fails, a note of the exception says so."""
    try:
        yield
        if manager is not None:
            manager.wait()
    except Exception as failure:
        said = printable_lines(str(failure))
        error.add_note(f"The last step was not saved: {said}\n{newest(manager)}")


def may_save(manager: CheckpointManager, error: BaseException, *, agreed: bool = False) -> bool:
    """Whether this process can save; a note of the exception says if it can't.

    Args:
        manager: where checkpoints are.
        error: gets the note.
        agreed: whether all processes end after the same step, so that they can save together.
    """
    alone = jax.process_count() == 1
    if not alone and not agreed:
        error.add_note(f"One of several processes can't save what it reached. {newest(manager)}")
    return alone or agreed


def newest(manager: CheckpointManager | None) -> str:
    """The newest checkpoint that is whole, in words."""
    if manager is None:
        return "Pass manager= to train, to have checkpoints."
    with contextlib.suppress(Exception):  # what failed is said already
        manager.wait()
    step = manager.latest_step
    known = "There is no whole checkpoint" if step is None else f"The newest whole checkpoint is step {step}"
    return f"{known} in {manager.directory}."
