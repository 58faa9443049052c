"""Models that are built to be filled at once: the random values that they would start with are not drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras
import numpy as np
from keras import initializers

from keras_flax_bridge.keras_internals.bounds import Made, variables_made_by
from keras_flax_bridge.keras_internals.values import in_scope

_RANDOM = (
    initializers.RandomNormal,
    initializers.RandomUniform,
    initializers.TruncatedNormal,
    initializers.VarianceScaling,
    initializers.Orthogonal,
)
_FIXED = (initializers.Zeros, initializers.Ones, initializers.Constant)
_ALIGNED = 64  # bytes: jax takes over an aligned array of numpy's as it is, on CPU


def filled(build: Callable[[], Any], fill: Callable[[Any], None]) -> Any:
    """A model, or a dict of models, whose variables get stored values as soon as it is built.

    Random initial values cost a program for every shape, and the memory of the weights a second time. In
    their place stand zeros whose memory the system provides when it is touched, which it never is. If
    `fill` leaves a variable as it was built, the model is built and filled once more with the values that
    Keras draws.

    Args:
        build: called without arguments; may be called a second time.
        fill: assigns the stored values to the variables of the model that it is given.
    """
    with _zeros_for_random() as made:
        model = build()
    before = [(variable, id(variable._value)) for variable in made]  # `_value`: the array itself, not a cast
    fill(model)
    # a new array can't have the id of the one that it replaces: that one is still there
    if any(id(variable._value) == value for variable, value in before):
        model = build()
        fill(model)
    return model


@contextlib.contextmanager
def _zeros_for_random() -> Iterator[list[Any]]:
    """Inside, variables with a random initializer of Keras's are zeros.

    Gives these variables, and those that may have been computed from them.
    """
    made: list[Any] = []

    def make(plain: Made, variable: Any, initializer: Any, shape: Any, dtype: Any, options: Any) -> None:
        given = initializers.get(initializer) if isinstance(initializer, str) else initializer
        if not _is_keras_own(given, _FIXED):
            made.append(variable)
        plain(variable, _zeros if _draws_alone(given) else initializer, shape=shape, dtype=dtype, **options)

    if keras.distribution.distribution() is not None or in_scope():  # Keras places the values, or needs none
        yield made
        return
    with variables_made_by(make):
        yield made


def _is_keras_own(initializer: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(initializer, kinds) and type(initializer).__module__.startswith("keras.")


def _draws_alone(initializer: Any) -> bool:
    """Whether an initializer draws from a number of its own, so that nobody misses the draw."""
    return _is_keras_own(initializer, _RANDOM) and isinstance(getattr(initializer, "seed", None), int)


def _zeros(shape: Any, dtype: Any = None) -> Any:
    """Zeros that take no memory before they are touched."""
    kind = jax.numpy.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    block = np.zeros(size + _ALIGNED, np.uint8)
    begin = -block.ctypes.data % _ALIGNED
    return jax.device_put(block[begin : begin + size].view(kind).reshape(shape), may_alias=True)
