"""Values of variables: moving them out of a model, and caches that layers compute from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from keras_flax_bridge.errors import OwnershipError
from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.models import all_layers
from keras_flax_bridge.tree.paths import join_path


@cache
def _moved_class(base: Any) -> Any:
    """A variable class without a value: it works inside a stateless scope, and raises outside of one."""

    def value(self: Any) -> Any:
        scope = get_stateless_scope()
        if scope is not None and scope.get_current_value(self) is not None:
            return base.value.fget(self)
        if in_symbolic_scope():  # shape inference asks for no values
            return self._maybe_autocast(jnp.zeros(self._shape, self._dtype))
        raise OwnershipError(
            self._moved_from,
            got="a variable whose value moved into a TrainState",
            expected="a variable that holds its value",
            fix="Write the state back with state.assign_to(model) before the model is used.",
        )

    def _direct_assign(self: Any, new: Any) -> None:
        self.__class__ = base
        base._direct_assign(self, new)

    return type(base.__name__, (base,), {"value": property(value), "_direct_assign": _direct_assign})


def in_scope() -> bool:
    """Whether variables created now get their values later, as in symbolic calls."""
    return get_stateless_scope() is not None


def in_shape_inference() -> bool:
    """Whether shapes alone are computed."""
    inferring: bool = in_symbolic_scope()
    return inferring


def move(entries: Iterable[Entry]) -> None:
    """Takes the values out of variables; using one raises OwnershipError until it is assigned."""
    for path, variable, *_ in entries:
        if not is_moved(variable):
            variable.__class__ = _moved_class(variable.__class__)
            variable._moved_from = join_path(path)
            variable._value = None  # the buffer itself: assign() would need a new one


def holds_value(variable: Any) -> bool:
    """Whether a variable has a value outside of a trace."""
    return variable._value is not None and not isinstance(variable._value, jax.core.Tracer)


def is_moved(variable: Any) -> bool:
    """Whether the value of a variable was moved into a state."""
    return variable._value is None and hasattr(variable, "_moved_from")


def _keepers(layer: Any) -> list[Any]:
    """Layers such as Normalization, which reads its statistics once, in `finalize_state`."""
    return [part for part in all_layers(layer) if hasattr(part, "finalize_state") and part.variables]


@contextlib.contextmanager
def finalized(layer: Any, entries: Iterable[Entry], values: Iterable[Any]) -> Iterator[None]:
    """Context in which cached results of layers are computed from these values."""
    keepers = _keepers(layer)
    before = [dict(vars(keeper)) for keeper in keepers]
    try:
        if keepers:
            with keras.StatelessScope([(e.variable, v) for e, v in zip(entries, values, strict=True)]):
                for keeper in keepers:
                    keeper.finalize_state()
        yield
    finally:
        for keeper, attributes in zip(keepers, before, strict=True):
            vars(keeper).clear()
            vars(keeper).update(attributes)


@contextlib.contextmanager
def writable(layer: Any) -> Iterator[None]:
    """Context in which layers may set attributes under any trace, in Keras's NNX mode too.

    There a layer is an nnx.Module, and nnx keeps a module from being written under another trace
    than it was made in; RNNs, among others, do write what they compute.
    """
    layers = all_layers(layer) if keras.config.is_nnx_enabled() else ()
    # `_pytree__state`: where nnx keeps that trace; Keras makes it itself, so nothing public sets it
    before = [(vars(part), vars(part)["_pytree__state"]) for part in layers]
    for attributes, _ in before:
        attributes["_pytree__state"] = nnx.pytreelib.PytreeState()
    try:
        yield
    finally:
        for attributes, state in before:
            attributes["_pytree__state"] = state


def refresh(model: Any) -> None:
    """Recomputes the caches of layers after their variables were assigned."""
    keepers = _keepers(model)
    for keeper in keepers:
        keeper.finalize_state()
    for name in ("train_function", "test_function", "predict_function"):
        if keepers and hasattr(model, name):
            setattr(model, name, None)  # compiled with the old results as constants
