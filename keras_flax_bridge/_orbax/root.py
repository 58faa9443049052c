"""A root folder of numbered steps, written asynchronously."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import jax

from keras_flax_bridge import _paths
from keras_flax_bridge._orbax.api import FilePath, ocp, speaking, steps_in
from keras_flax_bridge._orbax.writing import saving_context, written
from keras_flax_bridge.errors import CheckpointError

_WRITING: dict[FilePath, Any] = {}  # saves of this process that nobody waited for, by root folder


class Root:
    """A folder of numbered steps, written asynchronously, old ones removed."""

    def __init__(
        self, path: FilePath, kept: tuple[int | None, int | None, tuple[str, str] | None], *, packed: bool
    ):
        self.path = path
        self._packed = packed
        if path.exists() and not path.is_dir():
            raise CheckpointError(
                str(path), got="a file", expected="a folder, or nothing yet", fix="Take another path."
            )
        self.wait()  # for what another manager of this process began
        with speaking(path, "opening"):
            self._checkpointer = ocp().training.Checkpointer(path, preservation_policy=_preservation(*kept))

    def put_aside(self, folders: Sequence[FilePath]) -> None:
        """Takes damaged steps out of the run: their folders get another name, and stay."""
        for folder in folders if jax.process_index() == 0 else ():
            names = (f"{folder.name}.damaged{i or ''}" for i in count())
            folder.rename(next(path for path in map(self.path.joinpath, names) if not path.exists()))
        if folders:
            self._checkpointer.reload()  # Orbax keeps a list of its own

    def save(
        self, step: int, flat: Mapping[_paths.Path, Any], data: Any, logs: Any, metadata: dict[str, Any]
    ) -> None:
        """Starts to write a step, after the one before is on disk."""
        self.wait()
        if not self.path.is_dir():  # Orbax would wait minutes for a folder that nobody makes
            raise CheckpointError(
                str(self.path),
                got="a folder that is gone",
                expected="the folder in which earlier steps were written",
                fix="Put it back, or open a new manager.",
            )
        items, custom = written(flat, data, metadata, packed=self._packed)
        with speaking(self.path / str(step), "saving"), saving_context(flat):
            _WRITING[self.path] = self._checkpointer.save_checkpointables_async(
                step,
                items,
                force=True,  # whether a save is due was decided; Orbax skips without a word
                metrics=logs or None,
                custom_metadata=custom,
            )

    def wait(self) -> None:
        """Returns when the last save is on disk, and raises what went wrong with it."""
        pending = _WRITING.pop(self.path, None)
        if pending is not None:
            with speaking(self.path, "saving in the background"):
                pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            with speaking(self.path, "closing"):
                self._checkpointer.close()

    def steps(self) -> list[int]:
        # Orbax's own list doesn't know what other processes write and delete
        return list(steps_in(self.path))

    def logged(self, name: str) -> dict[int, float]:
        """A logged value by step, for the steps that have one."""
        if self.path not in _WRITING:
            self._checkpointer.reload()  # other processes write too
        found = ((c.step, (c.metrics or {}).get(name)) for c in self._checkpointer.checkpoints)
        return {step: value for step, value in found if value is not None and not math.isnan(value)}


def _preservation(max_to_keep: int | None, keep_every: int | None, best: tuple[str, str] | None) -> Any:
    """The newest steps, those of a fixed interval and the best: each of them stays."""
    policies = ocp().training.preservation_policies
    kept = [policies.PreserveAll() if max_to_keep is None else policies.LatestN(max_to_keep)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    if best is not None:
        kept.append(
            policies.BestN(get_metric_fn=_ranking(*best), n=1, keep_checkpoints_without_metrics=False)
        )
    return policies.AnyPreservationPolicy(kept)


def _ranking(name: str, mode: str) -> Callable[[Any], float]:
    """A number that is larger for a better checkpoint; one without the value is the worst."""

    def rank(metrics: Any) -> float:
        value = (metrics or {}).get(name)
        if value is None or math.isnan(value):
            return -math.inf
        return value if mode == "max" else -value

    return rank
