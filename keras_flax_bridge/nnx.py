"""Keras layers as `nnx.Module`s."""

from __future__ import annotations

from typing import Any

import keras
from flax import nnx

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._apply import call
from keras_flax_bridge._leaves import strong
from keras_flax_bridge.errors import NotBuiltError


class KerasSeed(nnx.RngState):
    """The state of a Keras `SeedGenerator`, ``uint32[2]``: a seed and a counter."""


class Frozen(nnx.Variable):
    """A weight that Keras keeps from training."""


_TYPES = {
    V.PARAM: nnx.Param,
    V.FROZEN: Frozen,
    V.BATCH_STAT: nnx.BatchStat,
    V.OTHER: nnx.BatchStat,  # state that calls may change, such as counters and RNN states
    V.SEED: KerasSeed,
}


class _Node(nnx.Module):
    """One level of structural keys below a `ToNNX`."""


class ToNNX(nnx.Module):
    """A Keras layer or model as an `nnx.Module`; no environment flag is needed.

    Its attributes mirror the structural keys (``module.dense_1.kernel``): `nnx.Param` for trainable
    weights, `nnx.BatchStat` for moving statistics and other state, `KerasSeed` for seeds and
    `Frozen` for frozen weights. It holds copies: the layer's own values are neither read nor
    written by a call. ``module.train()`` and ``module.eval()`` set the default of ``training``.

    Args:
        layer: a built Keras layer or model.
        rngs: None takes the layer's present values; `nnx.Rngs` draws new ones, from its
            ``params`` stream, by the layer's own initializers.

    Raises:
        NotBuiltError: if the layer has no variables yet.
        UnsupportedLayerError: with `rngs`, if the layer can't be built again from its config.

    Example:
        >>> import keras, numpy as np
        >>> module = ToNNX(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> module.dense.kernel.shape, module(np.ones((3, 4))).shape
        ((4, 2), (3, 2))
    """

    def __init__(self, layer: keras.layers.Layer, *, rngs: nnx.Rngs | None = None):
        if not layer.built:
            raise NotBuiltError(
                f"layer {layer.name!r}",
                got="a layer without variables",
                expected="a built layer",
                fix="Call it on data, or call its build(input_shape), before wrapping it.",
            )
        params, non_trainable = V.collect_layer(layer)
        self._layer = layer
        self._entries: tuple[V.Entry, ...] = tuple(params + non_trainable)
        self.deterministic = True
        drawn = None if rngs is None else V.initial_values(layer, rngs.params())
        for entry in self._entries:
            value = strong(entry.variable.value) if drawn is None else drawn[entry.path]
            node = _node(self, entry.path[:-1])
            setattr(node, _attribute(node, entry.path[-1]), _TYPES[entry.kind](value))

    def __call__(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer on this module's values, and updates its state.

        Args:
            *args: what the layer is called on.
            training: None for what ``train()`` or ``eval()`` set; inference at first, as in Keras.
            **kwargs: passed to the layer.

        Returns:
            The layer's outputs.

        Raises:
            ValueError: whatever the layer raises.
        """
        kwargs["training"] = not self.deterministic if training is None else training
        variables = list(self.variables_by_path().values())
        before = [variable.get_value() for variable in variables]
        outputs, after, _ = call(self._layer, self._entries, before, args, kwargs)
        for variable, old, new in zip(variables, before, after, strict=True):
            if new is not old:
                variable.set_value(new)
        return outputs

    def variables_by_path(self) -> dict[_paths.Path, nnx.Variable]:
        """The module's variables by structural path."""
        nodes = {entry.path: _node(self, entry.path[:-1]) for entry in self._entries}
        return {path: getattr(node, _attribute(node, path[-1])) for path, node in nodes.items()}


def _node(node: Any, path: _paths.Path) -> Any:
    """The module at a path, made where it doesn't exist yet."""
    for name in path:
        attribute = _attribute(node, name)
        if attribute not in vars(node):
            setattr(node, attribute, _Node())
        node = getattr(node, attribute)
    return node


def _attribute(node: Any, name: str) -> str:
    """The attribute that stands for a key; one that `nnx.Module` needs itself gets an underscore."""
    reserved = hasattr(type(node), name) or (isinstance(node, ToNNX) and name in _OWN)
    return f"{name}_" if reserved else name


_OWN = ("deterministic", "_layer", "_entries")
