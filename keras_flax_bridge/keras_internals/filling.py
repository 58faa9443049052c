"""Builds models that get stored values immediately, without drawing random initial values."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import keras
import numpy as np
from keras import initializers
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from keras_flax_bridge.keras_internals.bounds import Made, variables_made_by
from keras_flax_bridge.keras_internals.seeds import random_states
from keras_flax_bridge.keras_internals.values import in_scope

_RANDOM = (
    initializers.RandomNormal,
    initializers.RandomUniform,
    initializers.TruncatedNormal,
    initializers.VarianceScaling,
    initializers.Orthogonal,
)
_ALIGNED = 64  # bytes: on CPU, jax uses aligned numpy arrays without a copy


def filled(build: Callable[[], Any], fill: Callable[[Any], None]) -> Any:
    """Builds a model, or a dict of models, whose variables get stored values immediately.

    Random initial values cost a program for every shape, and the memory of the weights a second time. In
    their place stand zeros whose memory the system provides when it is touched, which it never is. If
    one of these zeros is read before it is replaced, or never replaced, the model is built and filled once
    more with the values that Keras draws.

    Args:
        build: called without arguments; may be called a second time.
        fill: assigns the stored values to the variables of the model that it is given.
    """
    rewind = random_states()
    with _Undrawn().standing_in() as undrawn:
        model = build()
    fill(model)
    if undrawn.missed():
        rewind()
        model = build()
        fill(model)
    return model


@contextlib.contextmanager
def passing_over() -> Iterator[None]:
    """Context in which zeros may be read: what is computed from them gets stored values, too."""
    token = _PASSING.set(True)
    try:
        yield
    finally:
        _PASSING.reset(token)


_PASSING: ContextVar[bool] = ContextVar("passing", default=False)


class _Undrawn:
    """Variables with zeros in place of the random values that Keras would draw."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[Any]] = []  # a layer may replace a variable
        self._read = False
        self._classes: dict[type, Any] = {}

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[_Undrawn]:
        """Context in which variables with a random initializer of Keras's are made as zeros."""

        def make(plain: Made, variable: Any, initializer: Any, shape: Any, dtype: Any, options: Any) -> None:
            # `get` draws a seed: it is called once, as Keras does
            given = initializers.get(initializer) if isinstance(initializer, str) else initializer
            if not _draws_alone(given):
                plain(variable, given, shape=shape, dtype=dtype, **options)
                return
            plain(variable, _zeros, shape=shape, dtype=dtype, **options)
            variable.__class__ = self._class(variable.__class__)
            self._made.append(weakref.ref(variable))

        # then Keras places the values, or needs none
        if keras.distribution.distribution() is not None or in_scope():
            yield self
            return
        with variables_made_by(make):
            yield self

    def missed(self) -> bool:
        """Whether a zero is left, or something may have been computed from one; asked once, at the end."""
        left = any(type(made()) in self._classes.values() for made in self._made)
        self._made.clear()  # the classes hold this object in a circle: it would keep the values of a model
        return self._read or left

    def _class(self, base: type) -> Any:
        """A subclass for unassigned variables; assignment restores their class."""
        if base not in self._classes:
            self._classes[base] = self._made_class(base)
        return self._classes[base]

    def _made_class(self, base: Any) -> Any:
        def value(variable: Any) -> Any:
            scope = get_stateless_scope()
            given = scope is not None and scope.get_current_value(variable) is not None
            if not (given or in_symbolic_scope() or _PASSING.get()):  # shape inference asks for no values
                self._read = True
            return base.value.fget(variable)

        def _direct_assign(variable: Any, new: Any) -> None:
            variable.__class__ = base
            variable._direct_assign(new)

        def _deferred_initialize(variable: Any) -> None:
            variable.__class__ = base
            variable._deferred_initialize()  # of a variable that was made in a stateless scope: to zeros
            variable.__class__ = self._classes[base]

        methods = {"_direct_assign": _direct_assign, "_deferred_initialize": _deferred_initialize}
        return type(base.__name__, (base,), {"value": property(value), **methods})


def _draws_alone(initializer: Any) -> bool:
    """Whether an initializer has a separate seed, so that a skipped draw has no effect on others."""
    own = isinstance(initializer, _RANDOM) and type(initializer).__module__.startswith("keras.")
    return own and isinstance(getattr(initializer, "seed", None), int)


def _zeros(shape: Any, dtype: Any = None) -> Any:
    """Zeros that take no memory before they are touched."""
    kind = jax.numpy.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    block = np.zeros(size + _ALIGNED, np.uint8)
    begin = -block.ctypes.data % _ALIGNED
    return jax.device_put(block[begin : begin + size].view(kind).reshape(shape), may_alias=True)
