"""Runs layers under `jax.checkpoint`: the backward pass computes again what they would have kept for it.

Keras's own `RematScope` applies to layers that are made inside of it, has no policies, and lets the seeds
that a layer draws from escape from `jax.checkpoint`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from keras_flax_bridge.keras_internals.graph import mask_of, set_mask
from keras_flax_bridge.keras_internals.models import all_layers
from keras_flax_bridge.keras_internals.values import in_shape_inference

Policy = Callable[..., Any] | None


@contextlib.contextmanager
def rematerialized(chosen: Iterable[tuple[Any, Policy]]) -> Iterator[None]:
    """Context in which the calls of some layers are checkpointed, each with its policy."""
    wrapped: list[tuple[dict[str, Any], str]] = []
    try:
        for layer, policy in chosen:
            name = "quantized_call" if getattr(layer, "quantization_mode", None) else "call"
            vars(layer)[name] = _checkpointed(layer, getattr(layer, name), policy)
            wrapped.append((vars(layer), name))
        yield
    finally:
        for attributes, name in wrapped:
            del attributes[name]


def _checkpointed(layer: Any, own: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    @functools.wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        outer = get_stateless_scope()
        if outer is None or in_shape_inference():
            return own(*args, **kwargs)
        run = _Run(own, outer)
        leaves, run.inputs = jax.tree.flatten((args, kwargs), is_leaf=_is_none)
        arrays = [leaf for leaf in map(run.input, leaves) if leaf is not None]
        masks = [mask_of(leaf) for leaf in arrays]
        outputs, out_masks, values, losses = jax.checkpoint(run, policy=policy)(arrays, masks)
        for variable, value in zip(run.changed, values, strict=True):
            outer.add_update((variable, value))
        _hand_on_losses(layer, outer, run.losses, losses)
        _set_masks(outputs, out_masks)
        return jax.tree.unflatten(run.outputs, run.joined(outputs))

    return call


class _Run:
    """The call of a layer as a function of arrays alone.

    Args:
        own: the call.
        outer: the scope with the values of the variables.
    """

    def __init__(self, own: Callable[..., Any], outer: Any):
        self._own, self._outer = own, outer
        self._static: list[Any] = []
        self._static_outputs: list[Any] = []
        self.inputs: Any = None
        self.outputs: Any = None
        self.changed: list[Any] = []
        self.losses: list[Any] = []

    def input(self, leaf: Any) -> Any:
        """The leaf if it is an array; others are kept aside."""
        self._static.append(_ARRAY if _is_array(leaf) else leaf)
        return leaf if _is_array(leaf) else None

    def __call__(self, arrays: list[Any], masks: list[Any]) -> tuple[Any, ...]:
        _set_masks(arrays, masks)
        args, kwargs = jax.tree.unflatten(self.inputs, _joined(self._static, arrays))
        with _Inner(self._outer) as scope:
            leaves, self.outputs = jax.tree.flatten(self._own(*args, **kwargs), is_leaf=_is_none)
        self._static_outputs = [_ARRAY if _is_array(leaf) else leaf for leaf in leaves]
        outputs = [leaf for leaf in leaves if _is_array(leaf)]
        self.changed, self.losses = list(scope.changed.values()), scope.losses
        values = [scope.state_mapping[id(variable)] for variable in self.changed]
        return outputs, [mask_of(leaf) for leaf in outputs], values, list(scope.losses)

    def joined(self, outputs: list[Any]) -> list[Any]:
        """All leaves of the outputs, from those that are arrays."""
        return _joined(self._static_outputs, outputs)


_ARRAY = object()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _joined(static: list[Any], arrays: list[Any]) -> list[Any]:
    rest = iter(arrays)
    return [next(rest) if leaf is _ARRAY else leaf for leaf in static]


class _Inner(keras.StatelessScope):
    """A scope that has the values of another one, and knows which variables were assigned."""

    def __init__(self, outer: Any):
        super().__init__(collect_losses=outer.collect_losses, initialize_variables=False)
        self.state_mapping = dict(outer.state_mapping)
        self.changed: dict[int, Any] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        super().add_update(update)
        self.changed[id(update[0])] = update[0]


def _set_masks(arrays: list[Any], masks: list[Any]) -> None:
    for array, mask in zip(arrays, masks, strict=True):
        if mask is not None:
            set_mask(array, mask)


def _hand_on_losses(layer: Any, outer: Any, before: list[Any], after: list[Any]) -> None:
    """Adds the losses of the layer and of its sublayers to the outer scope, each as its owner's."""
    for old, new in zip(before, after, strict=True):
        outer.add_loss(new)
        for part in all_layers(layer):
            # `_loss_ids`: by which Keras finds the layer that added a loss
            if id(old) in part._loss_ids:
                part._loss_ids.add(id(new))
