"""What the arguments of a save may be."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.checkpoint.orbax_io import FilePath
from keras_flax_bridge.errors import CheckpointError


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int) and value >= 1


def best_rule(keep_best: str | tuple[str, str]) -> tuple[str, str]:
    """`keep_best` as the name of a metric and `"min"` or `"max"`."""
    if not isinstance(keep_best, str):
        pair = isinstance(keep_best, (tuple, list)) and len(keep_best) == 2
        require(pair, "keep_best", repr(keep_best), "a name in the logs, or (name, 'min' or 'max')")
        name, mode = keep_best
        require(mode in ("min", "max"), "keep_best", f"mode {mode!r}", "'min' or 'max'")
        return name, mode
    for mode, words in _BETTER.items():
        if any(word in keep_best.lower() for word in words):
            return keep_best, mode
    require(False, "keep_best", repr(keep_best), f"({keep_best!r}, 'min') or ({keep_best!r}, 'max')")
    raise AssertionError  # unreachable


_BETTER = {
    "min": ("loss", "error", "mse", "mae", "perplexity"),
    "max": ("acc", "auc", "precision", "recall", "f1", "iou", "r2"),
}


def stale(directory: FilePath, step: int, newest: int) -> CheckpointError:
    """The error for a step that isn't newer than those in the folder."""
    return CheckpointError(
        str(directory),
        got=f"step {step}",
        expected=f"a step after {newest}, the newest one in the folder",
        fix="Continue that run from its newest step with state = manager.restore(state), delete the folders "
        "of the steps that you give up, or take a new folder.",
    )


def require(condition: bool, where: str, got: str, expected: str) -> None:
    """Raises a `CheckpointError` for an argument unless a condition holds."""
    if not condition:
        raise CheckpointError(where, got=got, expected=expected, fix="Nothing was read or written.")


def is_packed(layout: str) -> bool:
    """Whether a layout's name is ``"packed"``, not ``"tree"``."""
    require(layout in ("tree", "packed"), "layout", repr(layout), "'tree' or 'packed'")
    return layout == "packed"
