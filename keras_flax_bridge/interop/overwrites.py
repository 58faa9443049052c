"""Variables of NNX modules that their gradient overwrites: the scales and histories of float8 training."""

from __future__ import annotations

import inspect
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from keras_flax_bridge.errors import UnsupportedOptimizerError
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree
from keras_flax_bridge.tree.types import PyTree


class Overwritten(nnx.Variable[Any]):
    """A variable that its gradient overwrites: a scale or a history of float8 training.

    No optimizer trains it: `apply_overwrites` writes its gradient into it.
    """

    # overloads of Flax's own, which stay its own affair: arguments go on as they come
    def get_metadata(self, *args: Any, **kwargs: Any) -> object:  # type: ignore[override]
        """The metadata, as of every variable.

        Raises:
            UnsupportedOptimizerError: while an `nnx.Optimizer` is made that would train it.
        """
        if not args and not kwargs:  # as when a module is flattened
            _refuse_optimizer(self)
        return super().get_metadata(*args, **kwargs)


@words.door
def apply_overwrites(module: nnx.Module, grads: PyTree) -> None:
    """Writes gradients into the variables that they overwrite, in place, as Keras's optimizers do.

    Call it beside ``optimizer.update(module, grads)``, whose ``wrt`` is `nnx.Param`; the gradients are those
    of both kinds. A module without such variables stays as it is.

    Args:
        module: a `ToNNX`, or a module that holds some.
        grads: the gradients of the module, as `nnx.grad` returns them, or nested dicts.

    Raises:
        StructureMismatchError: listing the variables that have no gradient, or one of another shape or dtype;
            nothing was written.

    Example:
        >>> import keras, optax
        >>> from keras_flax_bridge import ToNNX
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16)])
        >>> model.layers[0].quantize("float8")
        >>> module = ToNNX(model)
        >>> optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
        >>> def loss(module):
        ...     return jnp.mean(module(jnp.full((1, 16), 3.0), training=True))
        >>> grads = nnx.grad(loss, argnums=nnx.DiffState(0, (nnx.Param, Overwritten)))(module)
        >>> _ = optimizer.update(module, grads)
        >>> apply_overwrites(module, grads)
        >>> float(module.dense.inputs_amax_history[0])
        3.0

    Source: https://arxiv.org/abs/2209.05433
    """
    places = dict(nnx.to_flat_state(nnx.state(module, Overwritten)))
    own = {_names(place): variable.get_value() for place, variable in places.items()}
    given = _arrays(grads)
    difference = diff_trees({path: given[path] for path in own if path in given}, own)
    if difference:
        raise difference.error(
            "grads",
            "Nothing was written. Differentiate them too: "
            "nnx.grad(loss, argnums=nnx.DiffState(0, (nnx.Param, kfb.Overwritten))).",
        )
    nnx.update(module, nnx.from_flat_state({place: given[_names(place)] for place in places}))


def _names(place: Any) -> Path:
    return tuple(map(str, place))


def _arrays(tree: Any) -> Flat:
    """The arrays of a state, a module or nested dicts by path."""
    if isinstance(tree, dict):
        return flatten_tree(tree)
    state = tree if isinstance(tree, nnx.State) else nnx.state(tree)
    return {
        _names(place): leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        for place, leaf in nnx.to_flat_state(state)
    }


# --- optimizers


# its frame holds `wrt` and `tx` while it flattens the module
_OPTIMIZER = inspect.unwrap(nnx.Optimizer.__init__).__code__


def _refuse_optimizer(variable: Overwritten) -> None:
    """Raises if this is asked while an `nnx.Optimizer` is made that would train the variable.

    `nnx.Optimizer` asks neither the module nor its variables whether it may: it only flattens the module.
    """
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not _OPTIMIZER:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return
    given = frame.f_locals
    is_wanted = nnx.filterlib.to_predicate(given["wrt"])
    if is_wanted((), variable) and not getattr(given["tx"], "knows_overwrites", False):
        raise UnsupportedOptimizerError(
            "nnx.Optimizer",
            got="a wrt that includes kfb.Overwritten, whose gradients are their new values",
            expected="wrt=nnx.Param",
            fix="Pass wrt=nnx.Param, and call kfb.apply_overwrites(module, grads) after update; or train "
            "with kfb.as_optax(keras_optimizer, model=model), which writes them.",
        )


# --- gradients that are not taken


_WARNED: weakref.WeakSet[Any] = weakref.WeakSet()  # layers whose modules warned


def warn_if_left_out(layer: Any, variables: Sequence[nnx.Variable[Any]]) -> None:
    """Warns, once for a layer, if a module is differentiated by other variables than those to overwrite."""
    left = [v for v in variables if isinstance(v, Overwritten)]
    if not left or layer in _WARNED or _is_differentiated(left[0].get_value()):
        return
    if any(_is_differentiated(v.get_value()) for v in variables if not isinstance(v, Overwritten)):
        _WARNED.add(layer)
        warnings.warn(
            f"layer {layer.name!r}: {len(left)} variables of float8 training are not updated, because no "
            "gradient is taken of them. Differentiate by (nnx.Param, kfb.Overwritten) and call "
            "kfb.apply_overwrites(module, grads).",
            stacklevel=4,
        )


def _is_differentiated(value: Any) -> bool:
    """Whether jax is taking a derivative by a value: only then it asks for that of a function of it."""
    if not isinstance(value, jax.core.Tracer) or not jnp.issubdtype(value.dtype, jnp.inexact):
        return False
    asked = []

    @jax.custom_jvp
    def same(x: Any) -> Any:
        return x

    @same.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
        asked.append(True)
        return primals[0], tangents[0]

    same(value)
    return bool(asked)
