"""Keras layers as `nnx.Module`s."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import NotBuiltError, StructureMismatchError
from keras_flax_bridge.keras_internals import BATCH_STAT, FROZEN, OTHER, PARAM, SEED, UNTRACKED, Entry
from keras_flax_bridge.keras_internals.call import call, require_built, require_known, require_layer
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import owned, require_values
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.types import Shape


class KerasSeed(nnx.RngState):
    """The state of a Keras `SeedGenerator`, ``uint32[2]``: a seed and a counter."""


class Frozen(nnx.Variable[Any]):
    """A weight that Keras keeps from training."""


_TYPES = {
    PARAM: nnx.Param,
    FROZEN: Frozen,
    BATCH_STAT: nnx.BatchStat,
    OTHER: nnx.BatchStat,  # state that calls may change, such as counters
    UNTRACKED: nnx.BatchStat,  # and states of RNNs
    SEED: KerasSeed,
}


class _Node(nnx.Module):
    """One level of structural keys below a `ToNNX`; items of lists and dicts are read by ``[...]``."""

    def __getitem__(self, key: Any) -> Any:
        try:
            return getattr(self, _attribute(self, str(key)))
        except AttributeError as error:
            raise (IndexError if isinstance(key, int) else KeyError)(key) from error


class _LayerHandle:
    """The Keras layer of a `ToNNX`; handles of the same layer compare equal, so that jit compiles once."""

    def __init__(self, layer: Any, entries: Sequence[Entry] = (), *, complete: bool = False):
        self.layer = layer
        self.entries = tuple(entries)
        self.complete = complete  # whether all sublayers are built, so that no call makes variables

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        variables = ((id(entry.variable), entry.kind) for entry in self.entries)
        return (id(self.layer), self.complete, *variables)

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)  # jit asks for it at every call

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _LayerHandle) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __deepcopy__(self, memo: dict[int, Any]) -> _LayerHandle:
        return self

    @cached_property
    def variables(self) -> frozenset[int]:
        return frozenset(id(entry.variable) for entry in self.entries)


@words.doors()
class ToNNX(nnx.Module):
    """A Keras layer or model as an `nnx.Module`; no environment flag is needed.

    Its attributes mirror the structural keys (``module.dense_1.kernel``, ``module.blocks[0].kernel``):
    `nnx.Param` for trainable weights, `nnx.BatchStat` for moving statistics and other state,
    `KerasSeed` for seeds and `Frozen` for frozen weights. It holds copies: the layer's own values
    are neither read nor written by a call. ``module.train()`` and ``module.eval()``, or
    ``nnx.view(module, deterministic=...)``, set the default of ``training``.

    Args:
        layer: a Keras layer or model. One that isn't built is built from `shape`, or by the first
            call, from the shapes of its arrays.
        rngs: None takes the layer's current values; `nnx.Rngs` initializes new ones from its
            ``params`` stream, with the layer's own initializers.
        shape: of the input, with the batch axis, such as ``(None, 28, 28)``, or a list or dict of
            shapes; for a layer that isn't built.

    Raises:
        StructureMismatchError: if `layer` is not a Keras layer, or `rngs` is not an `nnx.Rngs`.
        UnsupportedLayerError: with `rngs`, if the layer can't be rebuilt from its config.

    Example:
        >>> import keras, numpy as np
        >>> module = ToNNX(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> module.dense.kernel.shape, module(np.ones((3, 4))).shape
        ((4, 2), (3, 2))
        >>> ToNNX(keras.layers.Dense(2), rngs=nnx.Rngs(0), shape=(None, 4)).kernel.shape
        (4, 2)
    """

    def __init__(
        self, layer: keras.layers.Layer, *, rngs: nnx.Rngs | None = None, shape: Shape | None = None
    ):
        require_layer(layer)
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            raise StructureMismatchError(
                "rngs", got=f"a {type(rngs).__name__}", expected="nnx.Rngs", fix="Pass rngs=nnx.Rngs(0)."
            )
        if shape is not None and not keras_internals.is_complete(layer):
            keras_internals.build_layer(layer, keras_internals.shapes_to_specs(layer, shape))
        self.deterministic = True
        self._held = _LayerHandle(layer)
        key = None if rngs is None else rngs.params()
        if layer.built:
            _take_up(self, key, complete=keras_internals.is_complete(layer))
        elif key is not None:
            self.initial_key = nnx.RngKey(key, tag="params")  # until the first call builds the layer

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Any) -> ToNNX:
        module: ToNNX = super()._pytree__unflatten(static, node_attrs)
        _COPIES.add(module)
        return module

    def __call__(
        self, *args: Any, training: bool | None = None, return_losses: bool = False, **kwargs: Any
    ) -> Any:
        """Calls the layer on this module's values, and updates its state.

        Args:
            *args: arguments of the layer's call.
            training: None for what ``train()`` or ``eval()`` set; inference at first, as in Keras.
            return_losses: whether to return the losses too, as Keras's ``stateless_call`` does.
            **kwargs: passed to the layer, such as ``mask`` or ``initial_state``.

        Returns:
            The layer's outputs, or ``(outputs, losses)``.

        Raises:
            StructureMismatchError: if an argument is Flax's name for ``training``, or variables were
                added to the layer after it was wrapped.
            ValueError: whatever the layer raises.
        """
        require_known(kwargs, self._held.layer, "ToNNX")
        kwargs["training"] = not self.deterministic if training is None else training
        if not self._held.complete:
            _build(self, args, kwargs)
        _require_same_variables(self._held)
        variables = _variables(self)
        before = [variable.get_value() for variable in variables]
        outputs, after, losses = call(self._held.layer, self._held.entries, before, args, kwargs)
        for variable, old, new in zip(variables, before, after, strict=True):
            if new is not old:
                variable.set_value(new)
        _LOSSES[self] = _Raised(losses, variables)
        if losses and hasattr(self, "__captures__"):  # inside nnx.capture
            self.sow(nnx.Intermediate, "losses", losses)
        return (outputs, losses) if return_losses else outputs

    @property
    def losses(self) -> list[jax.Array]:
        """The losses of the last call: scalars from ``add_loss`` and from regularizers.

        Read them in the function that called the module: inside the same jitted or differentiated
        function. To pass them out of a transformation, return them (``return_losses=True``), or use
        ``nnx.capture(..., nnx.Intermediate)``.

        Raises:
            StructureMismatchError: if the module was not called in this function, or changed since.
        """
        raised = _LOSSES.get(self)
        if raised is None or raised.is_stale(_variables(self)):
            raise StructureMismatchError(
                "losses",
                got="a module that was not called in this function, or whose variables changed since",
                expected="an earlier call in the same function",
                fix="Read module.losses in the function that calls the module, and return them from it, "
                "or call it with return_losses=True.",
            )
        return raised.losses

    def variables_by_path(self) -> dict[Path, nnx.Variable[Any]]:
        """The module's variables by structural path."""
        return {e.path: v for e, v in zip(self._held.entries, _variables(self), strict=True)}

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the default of ``training``; `nnx.view` calls it.

        Args:
          deterministic: False for training, True for inference, None to leave it.

        Raises:
          TraceContextError: inside a transformation, on a module from outside of it.
        """
        # `nnx.view_info` reads the arguments above, and only if they are indented by two
        if deterministic is not None:
            self.deterministic = deterministic

    def assign_to(self, layer: keras.layers.Layer) -> None:
        """Writes the module's values into a Keras layer, all or nothing.

        Args:
            layer: the wrapped layer, or another of the same architecture; it gets copies.

        Raises:
            NotBuiltError: if the layer, or the module, has no variables yet.
            OwnershipError: if a value was donated, or is traced.
            StructureMismatchError: if the layer has other variables; lists all of them.

        Example:
            >>> import keras
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> module = ToNNX(model)
            >>> module.dense.bias.set_value(module.dense.bias.get_value() + 1)
            >>> module.assign_to(model)
            >>> float(model.layers[0].bias[0])
            1.0
        """
        _require_filled(self)
        require_built(layer)
        params, non_trainable = keras_internals.collect_state(layer)
        entries = params + non_trainable
        values = {path: variable.get_value() for path, variable in self.variables_by_path().items()}
        difference = diff_trees(values, entries.specs())
        if difference:
            raise difference.error(f"layer {layer.name!r}", "It must be of the module's architecture.")
        require_values(values)
        new = [owned(values[entry.path]) for entry in entries]
        for entry, value in zip(entries, new, strict=True):
            entry.variable.assign(value)
        keras_internals.refresh(layer)


# copies that jax creates from a pytree; under a transformation, additions to such a copy are lost
_COPIES: weakref.WeakSet[ToNNX] = weakref.WeakSet()


def _is_tracing(inputs: Any) -> bool:
    leaves = [*jax.tree.leaves(inputs), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


# --- variables


def _take_up(module: ToNNX, key: jax.Array | None, *, complete: bool) -> None:
    """Adds the missing variables of its layer to a module: with current values, or initialized from a key."""
    layer, known = module._held.layer, module._held.variables
    params, non_trainable = keras_internals.collect_state(layer)
    module._held = _LayerHandle(layer, params + non_trainable, complete=complete)
    fresh = [entry for entry in module._held.entries if id(entry.variable) not in known]
    drawn = None if key is None or not fresh else keras_internals.initial_values(layer, key)
    for entry in fresh:
        value = owned(entry.variable.value) if drawn is None else drawn[entry.path]
        node = _node(module, entry.path[:-1])
        setattr(node, _attribute(node, entry.path[-1]), _TYPES[entry.kind](value, **_metadata(entry)))


def _build(module: ToNNX, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Builds what isn't built of a module's layer, for these inputs."""
    if module in _COPIES and _is_tracing((args, kwargs)):
        raise NotBuiltError(
            f"ToNNX of layer {module._held.layer.name!r}",
            got="a first call inside a transformation with graph=False, which would lose the variables",
            expected="a module that has its variables",
            fix="Call it once outside, or pass shape= when you make it.",
        )
    keras_internals.build_layer(module._held.layer, *args, **kwargs)
    key = None
    if "initial_key" in vars(module):
        key = module.initial_key.get_value()
        del module.initial_key
    _take_up(module, key, complete=True)


def _metadata(entry: Entry) -> dict[str, Any]:
    """The nnx metadata of a variable: its sharding, and whether checkpoints may lack it."""
    sharding = keras_internals.partition(entry.variable)
    placed = {} if sharding is None else {"out_sharding": tuple(sharding.spec), "mesh": sharding.mesh}
    return {**placed, "optional": True} if entry.kind == UNTRACKED else placed


def _variables(module: ToNNX) -> list[nnx.Variable[Any]]:
    """The module's variables in the order of its entries.

    No method: `nnx.tabulate` replaces all public methods, and traces each for itself.
    """
    nodes = [(_node(module, entry.path[:-1]), entry.path[-1]) for entry in module._held.entries]
    return [getattr(node, _attribute(node, name)) for node, name in nodes]


def _node(node: Any, path: Path) -> Any:
    """The module at a path, created if it doesn't exist yet."""
    for name in path:
        attribute = _attribute(node, name)
        if attribute not in vars(node):
            setattr(node, attribute, _Node())
        node = getattr(node, attribute)
    return node


def _attribute(node: Any, name: str) -> str:
    """The attribute name of a key; names that `nnx.Module` uses itself get an underscore.

    So do names that end in an underscore, so that no two keys share an attribute.
    """
    stem = name.rstrip("_")
    own = stem.startswith("_pytree__") or (isinstance(node, ToNNX) and stem in _OWN)
    reserved = own or hasattr(type(node), stem) or hasattr(type(node), name)
    return f"{name}_" if reserved else name


_OWN = ("deterministic", "_held", "initial_key")


def _require_filled(module: ToNNX) -> None:
    if not module._held.entries and not module._held.complete:
        raise NotBuiltError(
            f"ToNNX of layer {module._held.layer.name!r}",
            got="a module without variables",
            expected="one whose layer is built",
            fix="Call it on data, or pass shape= when you make it.",
        )


def _require_same_variables(held: _LayerHandle) -> None:
    new = [variable.path for variable in held.layer.variables if id(variable) not in held.variables]
    if new:
        raise StructureMismatchError(
            f"layer {held.layer.name!r}",
            unexpected=new,
            fix="Variables were added after the layer was wrapped, as by enable_lora: wrap it again.",
        )


# --- losses


class _Raised:
    """The losses of a call, and the values that the module had after it."""

    def __init__(self, losses: list[jax.Array], variables: Sequence[nnx.Variable[Any]]):
        self.losses = losses
        # weak, for old weights not to be kept
        self.values = [weakref.ref(v.get_value()) for v in variables] if losses else []

    def is_stale(self, variables: Sequence[nnx.Variable[Any]]) -> bool:
        pairs = zip(self.values, variables, strict=False)
        return any(value() is not variable.get_value() for value, variable in pairs)


# beside the modules, not in them: an attribute added by a call would change the structure for jit
_LOSSES: weakref.WeakKeyDictionary[ToNNX, _Raised] = weakref.WeakKeyDictionary()
