"""NNX modules as Keras layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import keras
from flax import linen as nn
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedLayerError
from keras_flax_bridge.interop.flax_layer import FlaxLayer, ModuleHandle
from keras_flax_bridge.interop.module_config import Maker
from keras_flax_bridge.interop.module_leaves import Source, nnx_tree
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Shape


@words.doors(methods=False)
@keras.saving.register_keras_serializable("keras_flax_bridge")
class NNXLayer(FlaxLayer):
    """A Flax NNX module as a Keras layer.

    `nnx.Param` become trainable weights. All other variables become non-trainable ones, including keys
    and counts of `nnx.Rngs`, so random streams advance and are saved. Names and paths are the module's.
    They are copies: calls neither read nor write the module itself. ``training`` reaches the module
    as the argument its call has for it (``training``, ``train``, ``deterministic``,
    ``use_running_average``) and by ``train()`` and ``eval()``. A layer whose ``trainable`` is False
    runs in inference mode, so that its statistics do not change either.

    A Keras mask of the input is passed to the module's ``mask`` argument, if it has one and isn't one
    of Flax's own, and is propagated to outputs that have a vector for each entry of the mask.

    Args:
        module: an `nnx.Module`, or a class or function that returns one.
        args: positional arguments for the class or the function.
        kwargs: keyword arguments. If ``rngs`` is not among them and is a parameter, it gets
            ``nnx.Rngs(seed)``.
        method: the name of the method that is called.
        seed: an int; None for one that `keras.utils.set_random_seed` decides.
        **options: ``name``, ``dtype``, ``trainable``, as for any layer. Inputs and parameters come in
            the compute dtype. float32 variables are held in the variable dtype, others in their own.

    Raises:
        StructureMismatchError: if `module` neither is nor returns an `nnx.Module`.
        UnsupportedLayerError: where a model that holds an instance, or a class that isn't registered
            with Keras, is saved as a file with its architecture.

    Example:
        >>> import numpy as np
        >>> layer = NNXLayer(nnx.Linear, args=(4, 2), name="linear")
        >>> [variable.path for variable in layer.trainable_weights]
        ['linear/bias', 'linear/kernel']
        >>> keras.Sequential([keras.Input((4,)), layer]).predict(np.ones((3, 4)), verbose=0).shape
        (3, 2)
    """

    _kind, _other = nnx.Module, nn.Module

    def __init__(
        self,
        module: Any,
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        method: str = "__call__",
        seed: int | None = None,
        **options: Any,
    ):
        super().__init__(module, args=args, kwargs=kwargs, method=method, seed=seed, **options)
        self.build(None)

    def build(self, input_shape: Shape | None = None, **shapes: Shape) -> None:
        """Does nothing: the module already has its variables."""
        if not self.built:
            self._make_variables()

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Does nothing: the layer is already built."""

    def _prepare(self, held: ModuleHandle) -> type:
        def make(key: Any) -> Any:
            return held.maker.make(nnx.Module, lambda: nnx.Rngs(held.seed if key is None else key))

        is_late = keras_internals.in_scope() and not held.maker.is_instance(nnx.Module)
        made = nnx.eval_shape(lambda: make(None)) if is_late else make(None)
        held.module, state = nnx.split(made)

        if held.maker.is_instance(nnx.Module) and _is_traced(state):
            held.maker = Maker(_gone)

        def draw(key: Any) -> Any:
            return state if key is None and not is_late else nnx.split(make(key))[1]

        held.source = Source(nnx_tree(state), draw)
        return type(made)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        held, before = self._held, self._read()
        assert held.tree is not None
        module = nnx.merge(held.module, held.tree.unflatten(before))
        module.train() if training else module.eval()
        outputs = getattr(module, held.method)(*args, **kwargs, **held.flags(training))
        self._write(before, held.tree.flatten(nnx.split(module)[1], f"layer {self.name!r}"))
        return outputs


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _gone(**_: Any) -> None:
    raise UnsupportedLayerError(
        "module",
        got="an instance created under a trace, such as inside TrainState.abstract",
        expected="a module that can be rebuilt",
        fix="Wrap a class, or a function that makes the module: NNXLayer(function).",
    )
