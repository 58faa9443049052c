"""Compiled models: a copy compiled with other parts, and queries about a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

from keras_flax_bridge.errors import NotBuiltError, StructureMismatchError, said


def trainer(model: Any, *, loss: Any = None, optimizer: Any = None, metrics: Any = None) -> Any:
    """A compiled model: `model` itself, or a twin of it that is compiled with the given parts.

    The twin shares the layers and the variables and keeps its own loss, optimizer and metrics, so
    that the caller's model stays as it was. Parts not given are those of the compiled model. An
    object with optax's `init` and `update` in place of the optimizer is handled by the caller.

    Raises:
        NotBuiltError: if the model was never compiled and no optimizer is given.
        StructureMismatchError: if Keras can't compile a model with these parts.
    """
    compiled = getattr(model, "compiled", False)
    if compiled and loss is None and optimizer is None and metrics is None:
        return model
    if not compiled and optimizer is None:
        raise NotBuiltError(
            f"model {model.name!r}",
            got="a model that was never compiled, and no optimizer",
            expected="an optimizer",
            fix="Call model.compile(...), or pass optimizer= (optax.identity() where nothing is trained).",
        )
    given = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
    parts = {name: part for name, part in given.items() if part is not None}
    twin = object.__new__(type(model))  # copy.copy would save and load the model: Keras defines it so
    vars(twin).update(vars(model))
    try:
        # Keras's own: a class's own compile may ask for more, and leave traces on the caller's model
        keras.Model.compile(twin, **{**compiled_parts(model), **parts})
    except (TypeError, ValueError) as error:
        raise StructureMismatchError(
            f"compile of model {model.name!r}",
            got=", ".join(f"{name}={part!r}"[:100] for name, part in parts.items()),
            expected="arguments that compile accepts",
            fix=f"Keras says: {said(error)}",
        ) from error
    return twin


def compiled_parts(model: Any) -> dict[str, Any]:
    """The arguments of `compile`; empty for an uncompiled model."""
    if not model.compiled:
        return {}
    # `_compile_metrics`, `_compile_loss`: compile() keeps its arguments nowhere else as objects
    parts = {"optimizer": model.optimizer, "loss": model.loss or None}
    if model._compile_metrics is not None:
        parts["metrics"] = model._compile_metrics._user_metrics
        parts["weighted_metrics"] = model._compile_metrics._user_weighted_metrics
    if model._compile_loss is not None:
        parts["loss_weights"] = model._compile_loss._user_loss_weights
    return parts


def compilation(model: Any) -> tuple[Any, ...]:
    """The object that `compile` creates: a new one after every call."""
    return model.optimizer, model._compile_loss, model._compile_metrics


def takes_training(layer: Any) -> bool:
    """Whether the call of a layer has an argument `training`."""
    # `_call_has_training_arg`: what Keras's own step asks before it passes `training`
    answer: bool = layer._call_has_training_arg
    return answer


def is_overridden(model: Any, method: str) -> bool:
    """Whether the model's class has its own ``train_step``, ``test_step`` or other method of Keras."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


def has_loss(model: Any) -> bool:
    """Whether a model was compiled with a loss."""
    # `_compile_loss`: None for a model that only trains on add_loss()
    return model._compile_loss is not None


def metrics_built(model: Any) -> bool:
    """Whether the metrics of a compiled model have their variables."""
    # `_compile_metrics`, `_compile_loss`: they make their metrics only once they saw data
    metrics, loss = model._compile_metrics, model._compile_loss
    if metrics is not None:
        return bool(metrics.built)  # then so is the loss, unless an own compute_loss leaves it aside
    return loss is None or loss.built or is_overridden(model, "compute_loss")


def begin_fit_at(model: Any, epoch: int | None) -> None:
    """The epoch at which `fit` starts instead of its argument; None to use the argument."""
    model._initial_epoch = epoch  # `_initial_epoch`: what Keras's own BackupAndRestore sets


def class_weights(y: Any, weights: Mapping[int, float]) -> Any:
    """The weight of each row by its class, as `fit` computes it from `class_weight`."""
    return class_weight_to_sample_weights(y, weights)
