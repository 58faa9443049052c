"""Resuming a run from the newest checkpoint of a folder."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import jax

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.callback_memory import Memory
from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.errors import ArgumentError, printable
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.data import Feed

log = logging.getLogger("keras_flax_bridge")

CONTINUE, RESTART = "continue", "restart_epoch"


class Resumed(NamedTuple):
    """What a run begins with.

    Attributes:
        state: the state.
        memory: what callbacks remembered; None if nothing is resumed.
    """

    state: TrainState
    memory: Memory | None


def require(resume: Any, checkpoints: Any, argument: str) -> None:
    """Checks the argument.

    Args:
        resume: the argument.
        checkpoints: where checkpoints are; None for nowhere.
        argument: the name of the argument that says so.

    Raises:
        ArgumentError: if it is none of the known ones, or there is nothing to resume from.
    """
    if resume not in (None, CONTINUE, RESTART):
        raise ArgumentError(
            "resume",
            got=repr(resume),
            expected=f"None, {CONTINUE!r} or {RESTART!r}",
            fix=f"{CONTINUE!r} goes on with a run that a callback ended, {RESTART!r} begins the epoch again.",
        )
    if resume is not None and checkpoints is None:
        raise ArgumentError(
            "resume",
            got=f"resume={resume!r} without {argument}=",
            expected="a manager, whose newest checkpoint is resumed",
            fix=f"Pass {argument}=kfb.CheckpointManager(folder).",
        )


def resumed(state: TrainState, feed: Feed, manager: CheckpointManager | None, resume: str | None) -> Resumed:
    """The state of the newest checkpoint, if there is one; the data stands where it did.

    Raises:
        CheckpointError: if it can't be read.
        ArgumentError: if it was written with other data.
        StructureMismatchError: if it is of another model.
    """
    if manager is None or manager.latest_step is None:
        return Resumed(state, None)
    state = manager.restore(state, data=feed)
    feed.resume(restart=resume == RESTART)
    memory = orbax_io.memory(manager.directory / str(int(state.step)))
    if resume == CONTINUE:
        feed.ended_by = None
    return Resumed(state, memory)


def tell(text: str, verbose: int) -> None:
    """Says something about the run, once: on the screen, or in the log."""
    if verbose and jax.process_index() == 0:
        print(printable(text), flush=True)
    else:
        log.info("%s", printable(text))


def went_on(manager: CheckpointManager, step: int, epoch: int, batch: int) -> str:
    """What is said of a run that is resumed: from where."""
    return f"{manager.directory}: resumed from step {step}, at epoch {epoch + 1}, batch {batch}"


def was_over(manager: CheckpointManager, step: int, ended_by: str | None) -> str:
    """What is said of a run that is not resumed: why nothing is left to train."""
    why, go_on = (f", by {ended_by}", "; resume='continue' trains on") if ended_by else ("", "")
    return f"{manager.directory}: this run came to its end before{why}; step {step} is restored{go_on}"
