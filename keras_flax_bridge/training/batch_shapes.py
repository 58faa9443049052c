"""The shapes of batches that a step was compiled for: what is logged when there are several."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_flax_bridge.errors import printed
from keras_flax_bridge.tree.paths import Path, flatten_tree, join_path

log = logging.getLogger("keras_flax_bridge")

_MANY = 3  # one shape is the rule, and a second one for the last batch of an epoch


class _Spec(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class BatchShapes:
    """The shapes and dtypes that one step was compiled for; logs each that is not the first.

    Args:
        step: the name of the step in messages.
    """

    def __init__(self, step: str):
        self._step = step
        self._seen: list[dict[Path, _Spec]] = []

    def compiled(self, batch: Any) -> None:
        """Takes note of a batch that the step is compiled for; a shape that was seen before is not logged."""
        leaves = flatten_tree({"batch": batch}).items()
        specs = {path: _Spec(np.shape(leaf), str(getattr(leaf, "dtype", ""))) for path, leaf in leaves}
        if specs in self._seen:
            return
        self._seen.append(specs)
        count = len(self._seen)
        if count == 1:
            return
        what = f"{self._step} is compiled again, for batch shape {count}"
        if count != _MANY:
            log.info("%s:\n%s", what, printed(_lines(specs)))
        else:
            log.warning("%s. Between batches differ:\n%s\n%s", what, printed(self._differences()), _ADVICE)

    def _differences(self) -> Iterator[str]:
        """A line for each axis, or dtype, that was not the same in all batches."""
        for path in dict.fromkeys(path for specs in self._seen for path in specs):
            found = [specs[path] for specs in self._seen if path in specs]
            yield from (f"  {join_path(path)} {text}" for text in _varying(found))
            if len(found) < len(self._seen):
                yield f"  {join_path(path)} is in some batches only"


_ADVICE = (
    "Each shape costs a compilation. Pad this axis to one size, or to a few; drop a smaller last batch "
    "(drop_remainder=True in tf.data and Grain)."
)


def _lines(specs: dict[Path, _Spec]) -> Iterator[str]:
    return (f"  {join_path(path)}  {spec.dtype}{list(spec.shape)}" for path, spec in specs.items())


def _varying(specs: list[_Spec]) -> Iterator[str]:
    shapes = [spec.shape for spec in specs]
    if len({len(shape) for shape in shapes}) > 1:
        yield f"shape: {_listed(shapes)}"
    else:
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1:
                yield f"axis {axis}: sizes {_listed(sizes)}"
    if len({spec.dtype for spec in specs}) > 1:
        yield f"dtype: {_listed(spec.dtype for spec in specs)}"


def _listed(values: Any) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))
