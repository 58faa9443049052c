"""Modules of layers that are not built: what can't wait for their variables says so."""

from __future__ import annotations

import inspect
import sys

from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import NotBuiltError
from keras_flax_bridge.interop.keras_in_nnx_handle import LayerHandle

# its frame holds `wrt` while it flattens the module
_OPTIMIZER = inspect.unwrap(nnx.Optimizer.__init__).__code__


def not_built(held: LayerHandle, got: str) -> NotBuiltError:
    """The error for a module whose variables would come too late."""
    return NotBuiltError(
        f"ToNNX of layer {held.layer.name!r}",
        got=got,
        expected="a module that has its variables",
        fix="Call the module once on data, before the optimizer is made and outside of transformations; or "
        "pass shape= when you make it, as in kfb.ToNNX(layer, rngs=rngs, shape=(None, 28, 28)).",
    )


def refuse_optimizer(held: LayerHandle | None) -> None:
    """Raises if this is asked while an `nnx.Optimizer` is made of a module that has no variables yet.

    The optimizer would have no slots for them. It asks no module whether it may: it only flattens it.

    Raises:
        NotBuiltError: naming both remedies.
    """
    if held is None or held.complete or not _awaits_variables(held):
        return
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not _OPTIMIZER:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return
    is_wanted = nnx.filterlib.to_predicate(frame.f_locals["wrt"])
    if is_wanted((), nnx.Param(0.0)):
        raise not_built(held, "an nnx.Optimizer for a layer that is not built, whose weights it would lack")


def _awaits_variables(held: LayerHandle) -> bool:
    return not held.layer.built and keras_internals.makes_variables(held.layer)
