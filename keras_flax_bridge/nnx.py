"""Keras layers as `nnx.Module`s."""

from __future__ import annotations

from typing import Any

import keras
from flax import nnx

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._apply import call, require_built_layer
from keras_flax_bridge._leaves import owned
from keras_flax_bridge.errors import StructureMismatchError


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


class _Held:
    """What a `ToNNX` calls; two modules of one layer are one type to jit."""

    def __init__(self, layer: Any, entries: tuple[V.Entry, ...]):
        self.layer = layer
        self.entries = entries
        self._key = (id(layer), *((id(entry.variable), entry.kind) for entry in entries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: dict) -> _Held:
        return self


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
        StructureMismatchError: if `layer` is no Keras layer, or `rngs` no `nnx.Rngs`.
        UnsupportedLayerError: with `rngs`, if the layer can't be built again from its config.

    Example:
        >>> import keras, numpy as np
        >>> module = ToNNX(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> module.dense.kernel.shape, module(np.ones((3, 4))).shape
        ((4, 2), (3, 2))
    """

    def __init__(self, layer: keras.layers.Layer, *, rngs: nnx.Rngs | None = None):
        require_built_layer(layer)
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            raise StructureMismatchError(
                "rngs", got=f"a {type(rngs).__name__}", expected="nnx.Rngs", fix="Pass rngs=nnx.Rngs(0)."
            )
        params, non_trainable = V.collect_layer(layer)
        self._held = _Held(layer, tuple(params + non_trainable))
        self.deterministic = True
        drawn = None if rngs is None else V.initial_values(layer, rngs.params())
        for entry in self._held.entries:
            value = owned(entry.variable.value) if drawn is None else drawn[entry.path]
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
        outputs, after, _ = call(self._held.layer, self._held.entries, before, args, kwargs)
        for variable, old, new in zip(variables, before, after, strict=True):
            if new is not old:
                variable.set_value(new)
        return outputs

    def variables_by_path(self) -> dict[_paths.Path, nnx.Variable]:
        """The module's variables by structural path."""
        nodes = {entry.path: _node(self, entry.path[:-1]) for entry in self._held.entries}
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
    """The attribute that stands for a key; one that `nnx.Module` needs itself gets an underscore.

    So does one that ends in underscores already, for no two keys to share an attribute.
    """
    stem = name.rstrip("_")
    reserved = hasattr(type(node), stem) or (isinstance(node, ToNNX) and stem in _OWN)
    return f"{name}_" if reserved else name


_OWN = ("deterministic", "_held")
