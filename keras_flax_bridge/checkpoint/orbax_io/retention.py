"""Which steps stay in a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_flax_bridge.checkpoint.orbax_io.api import FilePath, ocp
from keras_flax_bridge.checkpoint.orbax_io.background import Folder
from keras_flax_bridge.checkpoint.orbax_io.steps import numbered_steps_in

Kept = tuple[int | None, int | None, tuple[tuple[str, str], ...]]


class Retention:
    """Orbax's policies, by the numbers of the steps that are on disk.

    Orbax applies a policy to its own list, in the order in which steps were saved: several threads save out
    of order, and other processes remove steps.

    Attributes:
        kept: steps that stay whatever the policy says.
        starting: the step of which a save is being started; it is on disk when the others are removed.
    """

    def __init__(self, path: FilePath, folder: Folder, kept: Kept):
        self._path = path
        self._folder = folder
        self._policy = None if kept[0] is None else _policy(kept[0], kept[1], kept[2])
        self.starting: int | None = None
        self.kept: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's protocol: for each checkpoint whether it stays."""
        if self._policy is None or self._folder.readers:
            return [True] * len(checkpoints)
        there = {*numbered_steps_in(self._path), self.starting}
        real = sorted((i for i, c in enumerate(checkpoints) if c.step in there), key=_step_in(checkpoints))
        stays = self._policy.should_preserve([checkpoints[i] for i in real], context=context)
        removed = {
            i
            for i, stay in zip(real, stays, strict=True)
            if not stay and checkpoints[i].step not in self.kept
        }
        return [i not in removed for i in range(len(checkpoints))]


def _step_in(checkpoints: Sequence[Any]) -> Callable[[int], int]:
    return lambda index: checkpoints[index].step


def _policy(max_to_keep: int, keep_every: int | None, best: Sequence[tuple[str, str]]) -> Any:
    """The newest steps, those of a fixed interval and the best: each of them stays."""
    policies = ocp().training.preservation_policies
    kept = [policies.LatestN(max_to_keep)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    kept += [
        policies.BestN(get_metric_fn=_ranking(*rule), n=1, keep_checkpoints_without_metrics=False)
        for rule in best
    ]
    return policies.AnyPreservationPolicy(kept)


def _ranking(name: str, mode: str) -> Callable[[Any], float]:
    """A number that is larger for a better checkpoint; one without the value is the worst."""

    def rank(metrics: Any) -> float:
        number = logged_number(metrics, name)
        if number is None:
            return -math.inf
        return number if mode == "max" else -number

    return rank


def logged_number(logs: Any, name: str) -> float | None:
    """A logged value; None where there is none that can be ranked: other code logs any JSON.

    >>> logged_number({"loss": 2}, "loss"), logged_number({"loss": "low"}, "loss")
    (2.0, None)
    """
    value = logs.get(name) if isinstance(logs, Mapping) else None
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # JSON has integers of any length
        return None
    return None if math.isnan(number) else number
