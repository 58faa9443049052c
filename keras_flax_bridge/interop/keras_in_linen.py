"""Keras layers as `flax.linen` modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax.errors import ModifyScopeVariableError

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError, printed
from keras_flax_bridge.interop.makers import layer_of, maker_of
from keras_flax_bridge.keras_internals import LINEN_COLLECTIONS, Collection, Entry
from keras_flax_bridge.keras_internals.call import require_built, require_known, stateless
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.leaves import owned
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path, nest_paths


@words.doors()
class ToLinen(nn.Module):
    """A Keras layer or model as a `linen.Module`.

    ``init(key, x)`` is pure: it initializes with the layer's own initializers from `key`, and returns the
    collections ``params``, ``batch_stats``, ``frozen`` and ``seeds``. ``apply`` takes them with
    ``mutable=[...]`` as usual, and returns the collections it names, updated. A call that writes to a
    collection that isn't among them is an error, as in Linen: statistics, counters and, without
    ``rngs={"dropout": key}``, seeds. With such a key the Keras seeds derive from it, otherwise they come
    from ``seeds``. Losses of the layer are returned with ``mutable=["losses"]``. What a layer assigns to
    a weight that trains is dropped unless ``params`` is mutable, as Keras's own trainer does on JAX.

    A top-level name ``params`` becomes ``params_``, since Linen refuses it.

    Attributes:
        layer: a Keras layer or model, or a function that makes one; its own values are neither read nor
            written. One that isn't built is built by `init`. A function makes layers that need no config:
            it is called for `init` too, and no memory is taken for the weights of its layers.
        training: the default of ``training`` in calls. Set it here in `nn.remat`, `nn.scan` and the
            like, where arguments are traced.

    Raises:
        flax.errors.ModifyScopeVariableError: if a call writes to a collection that isn't mutable.
        UnsupportedLayerError: at `init`, if a layer can't be rebuilt from its config, or a function needs
            the values of weights to make one.
        StructureMismatchError: if `layer` is no Keras layer and makes none; at `apply`, if a collection is
            missing or has another structure.

    Example:
        >>> import keras, numpy as np
        >>> module = ToLinen(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> variables = module.init(jax.random.key(0), np.ones((3, 4)))
        >>> jax.tree.map(np.shape, variables)
        {'params': {'dense': {'bias': (2,), 'kernel': (4, 2)}}}
        >>> module.apply(module.from_keras_values(), np.ones((3, 4))).shape
        (3, 2)
    """

    layer: keras.layers.Layer | Callable[[], keras.layers.Layer]
    training: bool = False

    @nn.compact
    def __call__(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer on this module's variables.

        Args:
            *args: arguments of the layer's call.
            training: None for the module's own.
            **kwargs: passed to the layer, such as ``mask`` or ``initial_state``.

        Returns:
            The layer's outputs.

        Raises:
            StructureMismatchError: if a collection is missing or of another structure.
            flax.errors.ModifyScopeVariableError: if the call writes to a collection that isn't mutable.
        """
        layer = layer_of(self.layer)
        require_known(kwargs, layer, "ToLinen")
        kwargs["training"] = self.training if training is None else training
        _require_static(kwargs["training"])
        if not keras_internals.is_complete(layer):
            own = layer is self.layer
            build = keras_internals.build_layer if own else keras_internals.build_without_values
            build(layer, *args, **kwargs)
        params, non_trainable = keras_internals.collect_layer(layer)
        boxes = self._boxes(params + non_trainable)
        values = flatten_tree(nest_paths({place: box.value for place, box in boxes.items()}))
        values = {place: _as_jax(value) for place, value in values.items()}
        variables = {"params": _chosen(values, params), "non_trainable": _chosen(values, non_trainable)}
        key = self.make_rng("dropout") if self._has_dropout_key() else None
        state = params, non_trainable
        outputs, after, losses = stateless(layer, state, variables, args, kwargs, key)
        if not self.is_initializing():
            placed = [_placed(entries, tree) for entries, tree in zip(state, after, strict=True)]
            self._require_mutable(
                [p for p, new in placed[1].items() if p in values and new is not values[p]], key
            )
            self._store(boxes, nest_paths({**placed[0], **placed[1]}), key)
            for loss in losses:
                self.sow("losses", "raised", loss)
        return outputs

    @nn.nowrap
    def from_keras_values(self) -> dict[str, Any]:
        """The variables with the layer's current values, as copies; a function is called for new ones.

        Returns:
            The collections that `init` returns.

        Raises:
            NotBuiltError: if the layer has no variables yet.
            StructureMismatchError: if `layer` is no Keras layer and makes none.
        """
        make = maker_of(self.layer)
        layer = self.layer if make is None else make()
        require_built(layer)
        params, non_trainable = keras_internals.collect_layer(layer)
        return nest_paths({_place(e): owned(e.variable.value) for e in params + non_trainable})

    @nn.nowrap
    def _boxes(self, entries: Collection) -> dict[tuple[str, str], nn.Variable[Any]]:
        """One Linen variable for each first name in each collection; it holds the subtree below."""
        drawn = self._draw() if self.is_initializing() else {}
        trees = nest_paths({_place(entry): drawn.get(entry.path) for entry in entries})
        return {
            (collection, name): self.variable(collection, name, lambda tree=tree: tree)
            for collection, subtrees in trees.items()
            for name, tree in subtrees.items()
            if self.is_initializing() or self.has_variable(collection, name)
        }

    @nn.nowrap
    def _draw(self) -> dict[Path, Any]:
        layer, make = layer_of(self.layer), maker_of(self.layer)
        return keras_internals.initial_values(layer, self.make_rng("params"), make)

    @nn.nowrap
    def _has_dropout_key(self) -> bool:
        return not self.is_initializing() and self.has_rng("dropout")

    @nn.nowrap
    def _require_mutable(self, written: Sequence[Path], key: jax.Array | None) -> None:
        """Checks that the caller gets back what a call wrote, as Linen does of its own variables."""
        lost = [
            place
            for place in written
            if not self.is_mutable_collection(place[0]) and not (place[0] == "seeds" and key is not None)
        ]
        if not lost:
            return
        (collection, *path), names = lost[0], sorted({place[0] for place in lost})
        assert self.scope is not None
        error = ModifyScopeVariableError(collection, join_path(path), self.scope.path_text)
        draws = ", or a key for random numbers alone: rngs={'dropout': key}" if "seeds" in names else ""
        error.add_note(
            printed(
                [f"The call writes to: {', '.join(map(join_path, lost))}.", f"Pass mutable={names}{draws}."]
            )
        )
        raise error

    @nn.nowrap
    def _store(
        self, boxes: Mapping[tuple[str, str], Any], values: Mapping[str, Any], key: jax.Array | None
    ) -> None:
        """Writes changed variables to the collections that the caller made mutable."""
        for (collection, name), box in boxes.items():
            derived = collection == "seeds" and key is not None
            if not derived and self.is_mutable_collection(collection):
                box.value = values[collection][name]


def _require_static(training: Any) -> None:
    if isinstance(training, jax.core.Tracer):
        raise StructureMismatchError(
            "ToLinen",
            got="a traced value for training",
            expected="True or False",
            fix="Inside nn.remat, nn.scan or jit, set it on the module: ToLinen(layer, training=True).",
        )


def _as_jax(value: Any) -> Any:
    """An array of jax: after a call it is the same object, if the call didn't write."""
    whole = isinstance(value, np.ndarray) and jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype
    return jnp.asarray(value) if whole else value


def _place(entry: Entry) -> Path:
    """The path of a variable in Linen's collections."""
    first, *rest = entry.path
    return (LINEN_COLLECTIONS[entry.kind], _name(first), *rest)


def _name(first: str) -> str:
    """A top-level name in a collection; ``params`` is renamed, since Linen refuses it."""
    return f"{first}_" if first.rstrip("_") == "params" else first


def _chosen(values: Flat, entries: Collection) -> dict[str, Any]:
    """The values of some entries as one nested dict, independent of their collections."""
    return nest_paths({e.path: values[_place(e)] for e in entries if _place(e) in values})


def _placed(entries: Collection, tree: Any) -> Flat:
    """The values of `tree` by their paths in Linen's collections."""
    flat = flatten_tree(tree)
    return {_place(entry): flat[entry.path] for entry in entries}
