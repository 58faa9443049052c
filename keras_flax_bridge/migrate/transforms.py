"""Invertible transforms between the arrays of one side and those of the other, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = list[Any]


class Reshape(NamedTuple):
    """One array in another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def forward(self, arrays: Arrays) -> Arrays:
        """From Keras to Flax."""
        return [array.reshape(self.after) for array in arrays]

    def inverse(self, arrays: Arrays) -> Arrays:
        """From Flax to Keras."""
        return [array.reshape(self.before) for array in arrays]

    def __str__(self) -> str:
        return f"reshape to {self.after}".replace(",)", ")")


class Transpose(NamedTuple):
    """One array with its axes in another order."""

    axes: tuple[int, ...]

    def forward(self, arrays: Arrays) -> Arrays:
        """From Keras to Flax."""
        return [array.transpose(self.axes) for array in arrays]

    def inverse(self, arrays: Arrays) -> Arrays:
        """From Flax to Keras."""
        return [array.transpose(tuple(np.argsort(self.axes).tolist())) for array in arrays]

    def __str__(self) -> str:
        return f"transpose {self.axes}"


class Split(NamedTuple):
    """One array cut into several along an axis."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, arrays: Arrays) -> Arrays:
        """From Keras to Flax."""
        cuts = np.cumsum(self.sizes)[:-1].tolist()
        return [part for array in arrays for part in jnp.split(array, cuts, self.axis)]

    def inverse(self, arrays: Arrays) -> Arrays:
        """From Flax to Keras."""
        return [jnp.concatenate(arrays, self.axis)]

    def __str__(self) -> str:
        return f"split axis {self.axis} into {self.sizes}"


class Merge(NamedTuple):
    """Several arrays joined along an axis."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, arrays: Arrays) -> Arrays:
        """From Keras to Flax."""
        return Split(*self).inverse(arrays)

    def inverse(self, arrays: Arrays) -> Arrays:
        """From Flax to Keras."""
        return Split(*self).forward(arrays)

    def __str__(self) -> str:
        return f"join along axis {self.axis}"


Transform = Reshape | Transpose | Split | Merge
KINDS: dict[str, Any] = {"reshape": Reshape, "transpose": Transpose, "split": Split, "merge": Merge}


def forward(transforms: Sequence[Transform], arrays: Arrays) -> Arrays:
    """The arrays of the other side."""
    for transform in transforms:
        arrays = transform.forward(arrays)
    return arrays


def inverse(transforms: Sequence[Transform], arrays: Arrays) -> Arrays:
    """The arrays that `forward` would turn into these, bit for bit.

    >>> arrays = [jnp.arange(6.0)]
    >>> steps = (Reshape((6,), (2, 3)), Transpose((1, 0)), Split(0, (1, 2)))
    >>> [part.shape for part in forward(steps, arrays)]
    [(1, 2), (2, 2)]
    >>> bool((inverse(steps, forward(steps, arrays))[0] == arrays[0]).all())
    True
    """
    for transform in reversed(transforms):
        arrays = transform.inverse(arrays)
    return arrays


def shapes(transforms: Sequence[Transform], specs: Arrays, *, back: bool = False) -> Arrays:
    """Shapes and dtypes that come out, without computing anything."""
    if not transforms:
        return list(specs)
    step = inverse if back else forward
    return jax.eval_shape(lambda arrays: step(transforms, arrays), list(specs))


def to_json(transform: Transform) -> list:
    """A transform as plain JSON: its kind and its numbers."""
    kind = next(name for name, cls in KINDS.items() if type(transform) is cls)
    return [kind, *transform]


def from_json(data: Sequence) -> Transform:
    """The transform that `to_json` wrote.

    Raises:
        KeyError: if there is none of that kind.
        ValueError: if its settings aren't whole numbers.

    >>> from_json(["transpose", [1, 0]])
    Transpose(axes=(1, 0))
    """
    kind, *settings = data
    wanted = _SETTINGS[kind]
    if len(settings) != len(wanted) or not all(map(_is_setting, settings, wanted)):
        raise ValueError(f"a {kind} with other settings than {', '.join(wanted)}")
    return KINDS[kind](*(tuple(n) if isinstance(n, list) else n for n in settings))


_SETTINGS = {
    "reshape": ("sizes", "sizes"),
    "transpose": ("sizes",),
    "split": ("axis", "sizes"),
    "merge": ("axis", "sizes"),
}


def _is_setting(value: Any, wanted: str) -> bool:
    numbers = [value] if wanted == "axis" else value
    return isinstance(numbers, (list, tuple)) and all(type(n) is int for n in numbers)
