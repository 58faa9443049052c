"""Checks of the arguments of a save."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_flax_bridge.checkpoint.orbax_io import FilePath, steps_in
from keras_flax_bridge.errors import ArgumentError, CheckpointError, StepAlreadyExistsError


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and value >= 1


Rule = str | tuple[str, str]
KeepBest = Rule | Sequence[Rule] | None


def best_rules(keep_best: KeepBest) -> tuple[tuple[str, str], ...]:
    """`keep_best` as names of metrics, each with `"min"` or `"max"`."""
    if keep_best is None:
        return ()
    # mypy does not follow what `_is_several` says of the type
    rules = [*map(best_rule, keep_best)] if _is_several(keep_best) else [best_rule(keep_best)]  # type: ignore[arg-type]
    fix = "Write one rule for each name in the logs."
    require(len(dict(rules)) == len(rules), "keep_best", repr(keep_best), "distinct names", fix)
    return tuple(rules)


def _is_several(keep_best: KeepBest) -> bool:
    """Whether these are several rules, and not one name with its mode."""
    if not isinstance(keep_best, (list, tuple)) or not keep_best:
        return False
    texts = all(isinstance(part, str) for part in keep_best)
    return not texts or (isinstance(keep_best, list) and keep_best[-1] not in ("min", "max"))


def best_rule(keep_best: str | tuple[str, str]) -> tuple[str, str]:
    """`keep_best` as the name of a metric and `"min"` or `"max"`."""
    if not isinstance(keep_best, str):
        pair = isinstance(keep_best, (tuple, list)) and len(keep_best) == 2
        fix = "Write keep_best=('val_accuracy', 'max'), with the name that the logs have."
        require(pair, "keep_best", repr(keep_best), "a name in the logs, or (name, 'min' or 'max')", fix)
        name, mode = keep_best
        fix = "Pass 'min' if lower is better, as for a loss, otherwise 'max'."
        require(mode in ("min", "max"), "keep_best", f"mode {mode!r}", "'min' or 'max'", fix)
        return name, mode
    for mode, words in _BETTER.items():
        if any(word in keep_best.lower() for word in words):
            return keep_best, mode
    raise ArgumentError(
        "keep_best",
        got=repr(keep_best),
        expected=f"({keep_best!r}, 'min') or ({keep_best!r}, 'max')",
        fix="The name doesn't determine whether lower is better: pass the mode.",
    )


_BETTER = {
    "min": ("loss", "error", "mse", "mae", "perplexity"),
    "max": ("acc", "auc", "precision", "recall", "f1", "iou", "r2"),
}


def is_unranked(name: str, logs: Mapping[str, float], *, evaluated: bool) -> bool:
    """Whether logs lack a value that they must have to rank their checkpoint.

    Those of training alone, as they are saved in the middle of an epoch, have none of an evaluation.
    """
    evaluated = evaluated or any(other.startswith(_HELD_OUT) for other in logs)
    return name not in logs and (evaluated or not name.startswith(_HELD_OUT))


_HELD_OUT = "val_"  # what the names of an evaluation's values begin with


def unranked(name: str, logs: Mapping[str, float]) -> ArgumentError:
    """The error for logs that lack the name of `keep_best`."""
    close = difflib.get_close_matches(name, logs, n=1)
    return ArgumentError(
        "keep_best",
        got=f"logs with the numbers {', '.join(map(repr, sorted(logs)))}" if logs else "logs without numbers",
        expected=repr(name),
        fix=f"Make the manager with keep_best={close[0]!r}."
        if close
        else "Pass one of these names to CheckpointManager, or no logs= where a checkpoint is not ranked.",
    )


def stale(directory: FilePath, step: int, newest: int) -> CheckpointError:
    """The error for a step that is not newer than the steps in the folder."""
    kind = StepAlreadyExistsError if step in steps_in(directory) else CheckpointError
    return kind(
        str(directory),
        got=f"step {step}",
        expected=f"a step after {newest}, the newest in the folder",
        fix="Continue that run from its newest step with state = manager.restore(state), delete the folders "
        "of the steps that you no longer need, or use a new folder.",
    )


def require(condition: bool, where: str, got: str, expected: str, fix: str) -> None:
    """Raises an `ArgumentError` unless a condition holds."""
    if not condition:
        raise ArgumentError(where, got=got, expected=expected, fix=fix)


def is_packed(layout: str) -> bool:
    """Whether a layout's name is ``"packed"``, not ``"tree"``."""
    fix = "Take 'packed' where a state has thousands of small leaves, else leave layout= out."
    require(layout in ("tree", "packed"), "layout", repr(layout), "'tree' or 'packed'", fix)
    return layout == "packed"
