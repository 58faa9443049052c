"""Invertible transforms between Keras arrays and Flax arrays, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.tree.untrusted.schema import Check, Malformed, said, shape

Arrays = list[Any]


class Reshape(NamedTuple):
    """Reshapes one array."""

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
    """Transposes one array."""

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
    """Splits one array into several along an axis."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, arrays: Arrays) -> Arrays:
        """From Keras to Flax."""
        for array in arrays:
            if array.shape[self.axis] != sum(self.sizes):  # jax splits a shorter array without an error
                raise ValueError(f"axis {self.axis} of {array.shape} is not of {sum(self.sizes)} elements")
        cuts = np.cumsum(self.sizes)[:-1].tolist()
        return [part for array in arrays for part in jnp.split(array, cuts, self.axis)]

    def inverse(self, arrays: Arrays) -> Arrays:
        """From Flax to Keras."""
        return [jnp.concatenate(arrays, self.axis)]

    def __str__(self) -> str:
        return f"split axis {self.axis} into {self.sizes}"


class Merge(NamedTuple):
    """Concatenates several arrays along an axis."""

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
    """Converts Keras arrays to Flax arrays."""
    for transform in transforms:
        arrays = transform.forward(arrays)
    return arrays


def inverse(transforms: Sequence[Transform], arrays: Arrays) -> Arrays:
    """Converts Flax arrays back to Keras arrays; the exact inverse of `forward`.

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
    """The shapes and dtypes of the results, without computing them."""
    if not transforms:
        return list(specs)
    step = inverse if back else forward
    found: Arrays = jax.eval_shape(lambda arrays: step(transforms, arrays), list(specs))
    return found


def to_json(transform: Transform) -> list[Any]:
    """A transform as JSON: its kind and its settings."""
    kind = next(name for name, cls in KINDS.items() if type(transform) is cls)
    return [kind, *(list(n) if isinstance(n, tuple) else n for n in transform)]


def _axis(value: Any, field: str) -> None:
    if type(value) is not int or not -64 <= value < 64:
        raise Malformed(field, said(value), "an axis index")


def _axes(value: Any, field: str) -> None:
    shape(value, field)
    if sorted(value) != list(range(len(value))):
        raise Malformed(field, said(value), "a permutation of the axes")


_NUMBERS: dict[str, tuple[Check, ...]] = {
    "reshape": (shape, shape),
    "transpose": (_axes,),
    "split": (_axis, shape),
    "merge": (_axis, shape),
}


def check(data: Any, field: str) -> None:
    """Checks the JSON of a transform.

    Raises:
        Malformed: if it does not have the format of `to_json`.
    """
    kind = data[0] if isinstance(data, list) and data else data
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise Malformed(field, said(kind), f"one of {', '.join(_NUMBERS)}")
    numbers, checks = data[1:], _NUMBERS[kind]
    if not isinstance(data, list) or len(numbers) != len(checks):
        raise Malformed(field, said(data), f"{kind} with {len(checks)} settings")
    for i, (number, one) in enumerate(zip(numbers, checks, strict=True)):
        one(number, f"{field}/{i + 1}")
    if kind == "reshape" and math.prod(numbers[0]) != math.prod(numbers[1]):
        raise Malformed(field, "shapes of different sizes", "two shapes of the same size")


def count_after(transforms: Sequence[Transform], count: int) -> int | None:
    """The number of resulting arrays; None if a transform does not accept this number of arrays.

    >>> count_after([Split(0, (1, 2)), Transpose((1, 0))], 1)
    2
    """
    for transform in transforms:
        sizes = len(transform.sizes) if isinstance(transform, Split | Merge) else 0
        taken, given = (1, sizes) if isinstance(transform, Split) else (sizes, 1)
        if sizes or isinstance(transform, Split | Merge):
            if count != taken:
                return None
            count = given
    return count


def from_json(data: Sequence[Any]) -> Transform:
    """Reads a transform from the JSON of `to_json`.

    Raises:
        Malformed: if the JSON is not a transform.

    >>> from_json(["transpose", [1, 0]])
    Transpose(axes=(1, 0))
    """
    check(data, "transforms")
    kind, *numbers = data
    transform: Transform = KINDS[kind](*(tuple(n) if isinstance(n, list) else n for n in numbers))
    return transform
