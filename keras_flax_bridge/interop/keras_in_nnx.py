"""Keras layers as `nnx.Module`s."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.interop.keras_in_nnx_building import not_built, refuse_optimizer
from keras_flax_bridge.interop.keras_in_nnx_handle import LayerHandle
from keras_flax_bridge.interop.keras_in_nnx_kinds import wrappers
from keras_flax_bridge.interop.keras_in_nnx_seeds import Keys, SeedHolder
from keras_flax_bridge.interop.makers import maker_of
from keras_flax_bridge.interop.overwrites import warn_if_left_out
from keras_flax_bridge.keras_internals import BATCH_STAT
from keras_flax_bridge.keras_internals.call import call, require_built, require_known, require_layer
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import owned, require_values
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.types import Shape


class _Node(SeedHolder):
    """One level of structural keys below a `ToNNX`; items of lists and dicts are read by ``[...]``."""

    def __getitem__(self, key: Any) -> Any:
        try:
            return getattr(self, _attribute(self, str(key)))
        except AttributeError as error:
            raise (IndexError if isinstance(key, int) else KeyError)(key) from error


@words.doors()
class ToNNX(SeedHolder):
    """A Keras layer or model as an `nnx.Module`; no environment flag is needed.

    Its attributes mirror the structural keys (``module.dense_1.kernel``, ``module.blocks[0].kernel``):
    `nnx.Param` for trainable weights, `nnx.LoRAParam` for those that ``enable_lora`` added, `nnx.BatchStat`
    for moving statistics and other state, `KerasSeed` for seeds, `Frozen` for frozen weights, and
    `Overwritten` for the scales and histories of float8 training. It holds copies: the layer's own values
    are neither read nor written by a call.
    ``module.train()``, ``module.eval()`` or ``nnx.view(module, deterministic=...)`` set the default of
    ``training``.

    Args:
        layer: a Keras layer or model, or a function that makes one. One that isn't built is built from
            `shape`, or by the first call, from the shapes of its arrays. With `rngs` a function makes
            layers that need no config.
        rngs: None takes the layer's current values; `nnx.Rngs` initializes new ones from its
            ``params`` stream, with the layer's own initializers. Seeds come from its ``dropout`` stream
            if it has one of this name.
        shape: of the input, with the batch axis, such as ``(None, 28, 28)``, or a list or dict of
            shapes; for a layer that isn't built.

    Raises:
        StructureMismatchError: if `layer` is no Keras layer and makes none, or `rngs` is not an `nnx.Rngs`.
        UnsupportedLayerError: with `rngs`, if a layer can't be rebuilt from its config, or a function needs
            the values of weights to make one.

    Example:
        >>> import keras, numpy as np
        >>> module = ToNNX(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> module.dense.kernel.shape, module(np.ones((3, 4))).shape
        ((4, 2), (3, 2))
        >>> ToNNX(keras.layers.Dense(2), rngs=nnx.Rngs(0), shape=(None, 4)).kernel.shape
        (4, 2)
    """

    def __init__(
        self,
        layer: keras.layers.Layer | Callable[[], keras.layers.Layer],
        *,
        rngs: nnx.Rngs | None = None,
        shape: Shape | None = None,
    ):
        make = maker_of(layer)
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            raise StructureMismatchError(
                "rngs", got=f"a {type(rngs).__name__}", expected="nnx.Rngs", fix="Pass rngs=nnx.Rngs(0)."
            )
        made: Any = layer
        if make is not None:
            made = make() if rngs is None else keras_internals.made_without_values(make)
        require_layer(made)
        self._held = LayerHandle(made, make=None if rngs is None else make)
        if shape is not None and not keras_internals.is_complete(made):
            self._held.build(keras_internals.shapes_to_specs(made, shape))
        self.deterministic = True
        keys = Keys.drawn(rngs)
        if made.built:
            _take_up(self, keys, complete=keras_internals.is_complete(made))
        else:
            keys.keep(self)

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Any) -> ToNNX:
        module: ToNNX = super()._pytree__unflatten(static, node_attrs)
        _COPIES.add(module)
        return module

    def _pytree__flatten(self) -> Any:
        refuse_optimizer(vars(self).get("_held"))
        return super()._pytree__flatten()  # type: ignore[no-untyped-call]

    def _pytree__flatten_with_paths(self) -> Any:
        refuse_optimizer(vars(self).get("_held"))
        return super()._pytree__flatten_with_paths()  # type: ignore[no-untyped-call]

    def _graph_node_flatten(self) -> Any:
        refuse_optimizer(vars(self).get("_held"))
        return super()._graph_node_flatten()  # type: ignore[no-untyped-call]

    # after a transformation Flax writes what a trace gave into the module, which keeps its own layer

    def _graph_node_set_key(self, key: Any, value: Any) -> None:
        if key != "_held" or value != self._held:
            super()._graph_node_set_key(key, value)

    def _graph_node_clear(self) -> None:
        own = vars(self).get("_held")  # of a swapped node Flax clears what another class has
        super()._graph_node_clear()  # type: ignore[no-untyped-call]
        vars(self)["_held"] = own

    def _graph_node_init(self, attributes: Any) -> None:
        own = vars(self).get("_held")
        super()._graph_node_init(attributes)
        if own is not None and own == self._held:
            vars(self)["_held"] = own

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
        warn_if_left_out(self._held.layer, variables)
        outputs, after, losses = call(self._held.layer, self._held.entries, before, args, kwargs)
        for variable, old, new in zip(variables, before, after, strict=True):
            if new is not old:
                # Flax can't differentiate what is written into a variable under `hijax=True`
                is_hijax = getattr(variable, "hijax", False)
                variable.set_value(jax.lax.stop_gradient(new) if is_hijax else new)
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

    @property
    def use_running_average(self) -> bool:
        """The same as ``deterministic``, for a layer with moving statistics: Keras has one flag for both.

        Raises:
            AttributeError: if the layer has no moving statistics, as in Flax's own modules.
        """
        if not any(entry.kind == BATCH_STAT for entry in self._held.entries):
            raise AttributeError("a layer without moving statistics has no use_running_average")
        return self.deterministic

    @use_running_average.setter
    def use_running_average(self, value: bool) -> None:
        self.deterministic = value

    def set_view(self, deterministic: bool | None = None, use_running_average: bool | None = None) -> None:
        """Sets the default of ``training``; `nnx.view` calls it.

        Args:
          deterministic: False for training, True for inference, None to leave it.
          use_running_average: the same; Keras has one flag for dropout and statistics.

        Raises:
          StructureMismatchError: if the two differ.
          TraceContextError: inside a transformation, on a module from outside of it.
        """
        # `nnx.view_info` reads the arguments above, and only if they are indented by two
        given = {flag for flag in (deterministic, use_running_average) if flag is not None}
        if len(given) == 2:
            raise StructureMismatchError(
                "set_view",
                got=f"deterministic={deterministic}, use_running_average={use_running_average}",
                expected="the same of both",
                fix="A Keras layer has one flag for both, training. To freeze the statistics alone, set "
                "trainable=False on the BatchNormalization layers before you wrap the model.",
            )
        for flag in given:
            self.deterministic = flag

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
        params, non_trainable = keras_internals.collect_layer(layer)
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


def _take_up(module: ToNNX, keys: Keys, *, complete: bool) -> None:
    """Adds the missing variables of its layer to a module: with current values, or initialized from keys."""
    layer, known = module._held.layer, module._held.variables
    params, non_trainable = keras_internals.collect_layer(layer)
    make = module._held.make
    module._held = LayerHandle(layer, params + non_trainable, complete=complete, make=make)
    fresh = [entry for entry in module._held.entries if id(entry.variable) not in known]
    drawn = None
    if keys.params is not None and fresh:
        drawn = keras_internals.initial_values(layer, keys.params, make, keys.seeds)
    wrapped = wrappers(layer)
    for entry in fresh:
        value = owned(entry.variable.value) if drawn is None else drawn[entry.path]
        node = _node(module, entry.path[:-1])
        setattr(node, _attribute(node, entry.path[-1]), wrapped(entry, value))


def _build(module: ToNNX, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Builds what isn't built of a module's layer, for these inputs."""
    if module in _COPIES and _is_tracing((args, kwargs)):
        raise not_built(
            module._held,
            "a first call inside a transformation with graph=False, which would lose the variables",
        )
    module._held.build(*args, **kwargs)
    _take_up(module, Keys.kept(module), complete=True)


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


_OWN = ("deterministic", "_held", "initial_key", "initial_seeds")


def _require_filled(module: ToNNX) -> None:
    if not module._held.entries and not module._held.complete:
        raise not_built(module._held, "a module without variables")


def _require_same_variables(held: LayerHandle) -> None:
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
