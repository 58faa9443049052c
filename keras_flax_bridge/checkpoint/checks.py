"""Checks of the arguments of a save."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.checkpoint.orbax_io import FilePath, steps_in
from keras_flax_bridge.errors import ArgumentError, CheckpointError, StepAlreadyExistsError


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and value >= 1


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
