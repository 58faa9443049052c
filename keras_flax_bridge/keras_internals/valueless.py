"""Layers built for real, but for the values of their weights: no initializer runs, and no memory is taken.

All code of the layers runs as it stands and with real numbers: arrays that they make, comparisons of shapes,
random draws. The weights alone are unknown, and whatever is computed from them has a shape and no value. That
is jax's partial evaluation: what depends on known values is computed at once, the rest is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.api_util import debug_info
from jax.extend import linear_util
from jax.interpreters import partial_eval

from keras_flax_bridge.errors import OwnershipError
from keras_flax_bridge.keras_internals.bounds import Made, variables_made_by
from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.quantizing import quantizing_without_values
from keras_flax_bridge.keras_internals.seeds import random_states

Initializer = Callable[..., Any]


class Valueless:
    """The variables that were made while something was built without values.

    Attributes:
        initializers: the initializer of every variable that has no value, by the variable's id.
    """

    def __init__(self) -> None:
        self.initializers: dict[int, Initializer] = {}
        self._made: dict[int, Any] = {}
        self._unknown: Any = None

    def __contains__(self, variable: Any) -> bool:
        """Whether a variable was made here."""
        return id(variable) in self._made

    def run(self, build: Callable[[], Any]) -> Any:
        """What `build` returns, whose variables have shapes and no values. They serve in `build` alone.

        Variables that are made from a value, or are assigned one, have it; so have seeds. Keras's and
        Python's random states are as before.
        """
        results: list[Any] = []

        def traced(unknown: Any) -> tuple[()]:
            # `_trace`: it wraps known numbers that enter it, which `bool` and numpy then refuse
            unknown._trace.__class__ = _leaving_known(unknown._trace.__class__)
            self._unknown = unknown
            try:
                with variables_made_by(self._make), quantizing_without_values(self._value):
                    results.append(build())
            finally:
                self._unknown = None  # the trace ends here: jax counts who still holds it as a leak
            return ()

        aval = jax.core.ShapedArray((), jnp.dtype("float32"))
        names = debug_info("valueless", traced, (0,), {})
        function = linear_util.wrap_init(traced, debug_info=names)
        rewind = random_states()
        try:
            # under jit too, what is known is computed at once
            with jax.core.eval_context():
                # nothing public takes inputs without values and computes the rest
                partial_eval.trace_to_jaxpr_nounits(function, [partial_eval.PartialVal.unknown(aval)])
        finally:
            rewind()
        return results[0]

    def _make(
        self, plain: Made, variable: Any, initializer: Any, shape: Any, dtype: Any, options: dict[str, Any]
    ) -> None:
        self._made[id(variable)] = variable  # the object too, for its id to stay its own
        if isinstance(initializer, str):
            initializer = keras.initializers.get(initializer)
        if not callable(initializer) or _is_seed(options):
            plain(variable, initializer, shape=shape, dtype=dtype, **options)
            return
        plain(variable, self._value, shape=shape, dtype=dtype, **options)
        # `_value`, `_initializer`: Keras asks for the value anew as long as there is none
        variable._value, variable._initializer = None, self._value
        self.initializers[id(variable)] = initializer

    def _value(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        """An array of this shape and dtype without values."""
        if self._unknown is None:
            raise OwnershipError(
                "variable",
                got="a variable of a model that was built without values",
                expected="values",
                fix="Call the state's apply_fn, or build the model with model_fn().",
            )
        return lax.broadcast(lax.convert_element_type(self._unknown, jnp.dtype(dtype)), tuple(shape))


@cache
def _leaving_known(base: Any) -> Any:
    """A class of traces in which known values stay as they are."""

    def stage_value(self: Any, value: Any) -> Any:
        own = isinstance(value, jax.core.Tracer)
        return base.stage_value(self, value) if own else self.parent_trace.stage_value(value)

    return type(base.__name__, (base,), {"__slots__": (), "stage_value": stage_value})


def _is_seed(options: Mapping[str, Any]) -> bool:
    """Whether a variable is the state of a seed generator: two numbers that random draws need."""
    return options.get("name") == "seed_generator_state"


def initializers(made: Valueless, entries: Iterable[Entry]) -> dict[int, Initializer]:
    """For each variable what it starts with: the value that it has, or its initializer."""
    return {id(e.variable): _start(made, e.variable) for e in entries}


def _start(made: Valueless, variable: Any) -> Initializer:
    value = variable._value  # `_value`: the value itself, whatever scope there is
    if id(variable) in made.initializers and (value is None or isinstance(value, jax.core.Tracer)):
        return made.initializers[id(variable)]

    def give(shape: Any, dtype: Any = None) -> Any:
        return jnp.asarray(value, dtype)

    return give
