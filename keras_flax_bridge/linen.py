"""Keras layers as `flax.linen` modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._apply import KerasApply, require_built_layer

_COLLECTIONS = {
    V.PARAM: "params",
    V.FROZEN: "frozen",
    V.BATCH_STAT: "batch_stats",
    V.OTHER: "batch_stats",  # state that calls may change, such as counters and RNN states
    V.SEED: "seeds",
}


class ToLinen(nn.Module):
    """A Keras layer or model as a `linen.Module`.

    ``init(key, x)`` is pure: it draws by the layer's own initializers from `key`, and gives the
    collections ``params``, ``batch_stats``, ``frozen`` and ``seeds``. ``apply`` takes them with
    ``mutable=[...]`` as usual; with ``rngs={"dropout": key}`` the Keras seeds derive from that key,
    else they are those of ``seeds``.

    Attributes:
        layer: a built Keras layer or model; its own values are neither read nor written.

    Raises:
        NotBuiltError: at `init`, if the layer has no variables yet.
        UnsupportedLayerError: at `init`, if the layer can't be built again from its config.
        StructureMismatchError: at `apply`, if a collection is missing or of another structure.

    Example:
        >>> import keras, numpy as np
        >>> module = ToLinen(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> variables = module.init(jax.random.key(0), np.ones((3, 4)))
        >>> jax.tree.map(np.shape, variables)
        {'params': {'dense': {'bias': (2,), 'kernel': (4, 2)}}}
    """

    layer: Any

    @nn.compact
    def __call__(self, *args: Any, training: bool = False, **kwargs: Any) -> Any:
        """Calls the layer on this module's variables.

        Args:
            *args: what the layer is called on.
            training: passed where the layer takes it.
            **kwargs: passed to the layer.

        Returns:
            The layer's outputs.

        Raises:
            StructureMismatchError: if a collection is missing or of another structure.
        """
        require_built_layer(self.layer)
        params, non_trainable = V.collect_layer(self.layer)
        boxes = self._boxes(params + non_trainable)
        values = _paths.flatten(_paths.nest({place: box.value for place, box in boxes.items()}))
        key = self.make_rng("dropout") if self._has_dropout_key() else None
        outputs, updates = KerasApply(self.layer)(
            {"params": _chosen(values, params), "non_trainable": _chosen(values, non_trainable)},
            *args,
            mutable="non_trainable",
            rngs=key,
            training=training,
            **kwargs,
        )
        if not self.is_initializing():
            self._store(boxes, _placed(non_trainable, updates["non_trainable"]), key)
        return outputs

    def _boxes(self, entries: V.Collection) -> dict[tuple[str, str], nn.Variable]:
        """One Linen variable for each first name in each collection; it holds the subtree below."""
        drawn = self._draw() if self.is_initializing() else {}
        trees = _paths.nest({_place(entry): drawn.get(entry.path) for entry in entries})
        return {
            (collection, name): self.variable(collection, name, lambda tree=tree: tree)
            for collection, subtrees in trees.items()
            for name, tree in subtrees.items()
            if self.is_initializing() or self.has_variable(collection, name)
        }

    def _draw(self) -> dict[_paths.Path, Any]:
        return V.initial_values(self.layer, self.make_rng("params"))

    def _has_dropout_key(self) -> bool:
        return not self.is_initializing() and self.has_rng("dropout")

    def _store(self, boxes: Mapping, values: Mapping, key: jax.Array | None) -> None:
        """Writes what the call changed into the collections that the caller made mutable."""
        for (collection, name), box in boxes.items():
            derived = collection == "seeds" and key is not None
            if collection != "params" and not derived and self.is_mutable_collection(collection):
                box.value = values[collection][name]


def _place(entry: V.Entry) -> _paths.Path:
    """Where a variable lies among Linen's collections."""
    return (_COLLECTIONS[entry.kind], *entry.path)


def _chosen(values: _paths.Flat, entries: V.Collection) -> dict[str, Any]:
    """The values of some entries as one nested dict, whatever collection each is in."""
    return _paths.nest({e.path: values[_place(e)] for e in entries if _place(e) in values})


def _placed(entries: V.Collection, tree: Any) -> dict[str, Any]:
    """The values of `tree` as Linen's collections."""
    flat = _paths.flatten(tree)
    return _paths.nest({_place(entry): flat[entry.path] for entry in entries})
