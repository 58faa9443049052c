"""Linen modules as Keras layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import linen as nn
from flax import nnx
from flax.errors import InvalidRngError

from keras_flax_bridge.interop.flax_layer import FLAGS, FlaxLayer, ModuleHandle
from keras_flax_bridge.interop.module_leaves import OVERWRITES, Source, linen_tree
from keras_flax_bridge.keras_internals import seeds
from keras_flax_bridge.keras_internals.values import in_shape_inference
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Shape


@words.doors(methods=False)
@keras.saving.register_keras_serializable("keras_flax_bridge")
class LinenLayer(FlaxLayer):
    """A Flax Linen module as a Keras layer.

    The first call builds it and initializes its weights with ``module.init(jax.random.key(seed), x)``.
    The collection ``params`` becomes trainable weights, and ``_overwrite_with_gradient`` (float8 scales)
    such that their gradient overwrites them; all other collections become non-trainable ones; names
    and paths are the module's. Random numbers of a call derive from a Keras seed, which is saved and
    advances with each call that uses it. ``training`` reaches the module as the argument its
    call has for it (``training``, ``train``, ``deterministic``, ``use_running_average``), or as its
    field of that name. A layer whose ``trainable`` is False runs in inference mode, so that
    its statistics do not change either. What the module sows into ``losses`` becomes a loss of the layer.

    A Keras mask of the input is passed to the module's ``mask`` argument, if it has one and isn't one
    of Flax's own, and is propagated to outputs that have a vector for each entry of the mask.

    Args:
        module: a `linen.Module`, or a class or function that returns one.
        args: positional arguments for the class or the function.
        kwargs: keyword arguments.
        method: the name of the method that is called.
        seed: an int; None for one that `keras.utils.set_random_seed` decides.
        **options: ``name``, ``dtype``, ``trainable``, as for any layer. Inputs and parameters come in
            the compute dtype. float32 variables are held in the variable dtype, others in their own.

    Raises:
        StructureMismatchError: if `module` neither is nor returns a `linen.Module`.
        UnsupportedLayerError: where a model is saved as a file with its architecture and holds a
            class that isn't registered with Keras.

    Example:
        >>> import numpy as np
        >>> layer = LinenLayer(nn.Dense(2), name="dense")
        >>> layer(np.ones((3, 4))).shape, [variable.path for variable in layer.trainable_weights]
        ((3, 2), ['dense/bias', 'dense/kernel'])
    """

    _kind, _other = nn.Module, nnx.Module

    def build(self, input_shape: Shape | None = None, **shapes: Shape) -> None:
        """Creates the variables for the inputs of a call, or for inputs of these shapes.

        Args:
            input_shape: that of the first argument of a call; its dtype is the compute dtype, or int32 for
                a module that takes no floats.
            **shapes: those of other arguments: ``x_shape`` of the argument ``x``.

        Raises:
            ValueError: whatever the module raises when it is initialised.
        """
        held = self._held
        if held.inputs is None:
            held.source = self._first_dtype(self._source, input_shape, shapes)
        else:
            held.source = self._source(*held.inputs)
        self._make_variables()

    def _source(self, args: Any, kwargs: Any) -> Source:
        """The initial values for such inputs."""
        held = self._held
        args, kwargs = keras.tree.map_structure(self._as_spec, (args, kwargs))

        def draw(key: Any) -> Any:
            given, named = keras.tree.map_structure(_as_zeros, (args, kwargs))
            return self._init(jax.random.key(held.seed) if key is None else key, given, named)

        source = Source(linen_tree(jax.eval_shape(lambda: draw(None))), draw, held.seed)
        held.inputs = tuple(args), kwargs
        return source

    def _init(self, key: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        module, flags = _with_flags(self._held, False)
        variables = module.init(key, *args, method=self._held.method, **kwargs, **flags)
        return {name: tree for name, tree in variables.items() if name != "losses"}

    def get_build_config(self) -> dict[str, Any] | None:
        """The shapes and dtypes that the layer was built for."""
        if self._held.inputs is None:
            return None
        args, kwargs = keras.tree.map_structure(_spec_to_config, self._held.inputs)
        return {"args": list(args), "kwargs": kwargs}

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Builds the layer from the result of `get_build_config`.

        Raises:
            ValueError: whatever the module raises when it is initialised.
        """
        self._held.inputs = tuple(map(_spec_from_config, config["args"])), _spec_from_config(config["kwargs"])
        self.build(None)

    def _prepare(self, held: ModuleHandle) -> type:
        held.module = held.maker.make(nn.Module)
        return type(held.module)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        held = self._held
        if held.tree is None and in_shape_inference():
            return self._run_unbuilt(args, kwargs, training)
        *before, seed = self._read()
        assert held.tree is not None
        variables = held.tree.unflatten(before)
        call = functools.partial(self._apply, variables, args, kwargs, training)
        (outputs, updates), moved = self._call_drawing_keys(call, training, seed)
        for loss in jax.tree.leaves(updates.pop("losses", {})):
            self.add_loss(jnp.sum(loss))
        after = {name: updates.get(name, tree) for name, tree in variables.items()}
        flat = held.tree.flatten(after, f"layer {self.name!r}")
        self._write([*before, seed], [*flat, moved])
        return outputs

    def _run_unbuilt(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        """The outputs of a call that builds the layer, where shapes alone are computed."""
        key = jax.random.key(0)
        state = self._init(key, args, kwargs)
        tree = linen_tree(state)
        leaves = zip(tree.leaves, tree.flatten(state, "module"), strict=True)
        variables = tree.unflatten([self._held_as(leaf, value) for leaf, value in leaves])
        return self._apply(variables, args, kwargs, training, dict.fromkeys(_STREAMS, key))[0]

    def _apply(
        self, variables: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool, rngs: Any
    ) -> Any:
        module, flags = _with_flags(self._held, training)
        # what gradients overwrite is trained: a call changes it no more than it does ``params``
        mutable = [*(name for name in variables if name not in ("params", OVERWRITES)), "losses"]
        options = {**kwargs, **flags}
        return module.apply(variables, *args, rngs=rngs, mutable=mutable, method=self._held.method, **options)

    def _call_drawing_keys(
        self, call: Callable[[Any], Any], training: bool, seed: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Calls the module with keys only if it uses any, so that other calls don't advance the seed."""
        if training not in self._held.draws:
            try:
                return call({}), seed
            except InvalidRngError:
                self._held.draws.add(training)
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        rngs = {name: seeds.fold(key, (name,)) for name in _STREAMS}
        return call(rngs), seed + jnp.array([0, 1], seed.dtype)


_STREAMS = "params", "dropout"


def _with_flags(held: ModuleHandle, training: bool) -> tuple[Any, dict[str, bool]]:
    """The Linen module and arguments, with the fields and arguments that select training or inference."""
    fields = {name: training == word for name, word in FLAGS.items() if hasattr(held.module, name)}
    # a setting in a field must not be passed as an argument
    said = {name for name in fields if getattr(held.module, name) is not None}
    arguments = {name: value for name, value in held.flags(training).items() if name not in said}
    own = {name: value for name, value in fields.items() if name not in held.flags(training)}
    return (held.module.clone(**own) if own else held.module), arguments


# --- what a layer is built for


def _as_zeros(leaf: Any) -> Any:
    """An array of a spec; sizes that are not known are 1."""
    if not isinstance(leaf, keras.KerasTensor):
        return leaf
    return jnp.zeros([1 if size is None else size for size in leaf.shape], leaf.dtype)


def _spec_to_config(leaf: Any) -> Any:
    if not isinstance(leaf, keras.KerasTensor):
        return leaf
    return {"shape": list(leaf.shape), "dtype": leaf.dtype}


def _spec_from_config(config: Any) -> Any:
    if isinstance(config, dict) and config.keys() == {"shape", "dtype"}:
        return keras.KerasTensor(config["shape"], config["dtype"])
    if isinstance(config, dict):
        return {name: _spec_from_config(item) for name, item in config.items()}
    return [_spec_from_config(item) for item in config] if isinstance(config, list) else config
