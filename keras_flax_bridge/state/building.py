"""Building a Keras model, its optimizer and metrics for a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import (
    BridgeError,
    NotBuiltError,
    StructureMismatchError,
    said,
)
from keras_flax_bridge.keras_internals.batch_arrays import as_arrays
from keras_flax_bridge.keras_internals.batches import REFUSALS, check_leaves, described, explain_batch
from keras_flax_bridge.optimizers.step_interface import require_model


def built(trained: Any, batch: Any) -> Any:
    """Builds the model, its metrics as far as `batch` allows, and its optimizer.

    Raises:
        NotBuiltError: if the model is unbuilt and there is no batch.
        StructureMismatchError: if the optimizer was built for other variables.
    """
    if batch is not None and not keras_internals.is_built(trained):
        build(trained, batch)
    require_built_model(trained)
    if isinstance(trained.optimizer, keras.optimizers.Optimizer):
        keras_internals.build_optimizer(trained)
    return trained


def build(trained: Any, batch: Any) -> None:
    """Creates the variables that a batch of these shapes and dtypes needs, as `fit` would.

    Raises:
        StructureMismatchError: if the batch doesn't match the model, its loss and its metrics.
    """
    batch = as_arrays(batch)
    try:
        keras_internals.build(trained, batch)
    except REFUSALS as error:
        if isinstance(error, BridgeError):
            raise
        check_leaves(batch)
        explain_batch(trained, "train_step", batch, error)
        raise StructureMismatchError(
            f"batch of model {trained.name!r}",
            got="a batch that the model can't be built from",
            expected="what the model, its loss and its metrics take",
            report=described(batch),
            fix=f"Keras says: {said(error)}",
        ) from error


def require_built_model(model: Any) -> None:
    """Raises a `NotBuiltError` unless a model has its weights."""
    if not model.built:
        raise NotBuiltError(
            f"model {model.name!r}",
            got="a model without variables",
            expected="a built model",
            fix="Call it on data, start it with keras.Input, or give TrainState.from_keras a batch=.",
        )


def copied(optimizer: Any) -> Any:
    """Copies of Keras optimizers, also in a dict, for a model that is not built yet; other values unchanged.

    Raises:
        UnsupportedOptimizerError: as `keras_internals.rebuilt_alone`.
    """
    if isinstance(optimizer, Mapping):
        return {name: copied(value) for name, value in optimizer.items()}
    return (
        keras_internals.rebuilt_alone(optimizer)
        if isinstance(optimizer, keras.optimizers.Optimizer)
        else optimizer
    )


def match_copies(optimizer: Any, copies: Any) -> None:
    """Completes what `copied` made, when the model that it trains is built.

    Raises:
        StructureMismatchError: as `keras_internals.match_exclusions`.
    """
    if isinstance(optimizer, Mapping):
        for name, value in optimizer.items():
            match_copies(value, copies[name])
    elif isinstance(optimizer, keras.optimizers.Optimizer):
        keras_internals.match_exclusions(optimizer, copies)


def abstracted(
    take: Callable[[Any], Any],
    model_fn: Callable[[], Any],
    prepare: Callable[[Any, Any], Any],
    optimizer: Any,
) -> Any:
    """The state that `take` returns for the model that `model_fn` builds, as shapes and dtypes.

    Args:
        take: makes the state of what `prepare` returned.
        model_fn: builds a model, or a dict of models.
        prepare: completes the model, given it and the optimizer: what it makes is known, but for weights.
        optimizer: Keras's are copied.

    Raises:
        StructureMismatchError: if the model existed before, or the optimizer was built for another one.
        UnsupportedLayerError: if building the model needs values.
        UnsupportedOptimizerError: if the optimizer can't be copied.
    """
    fresh, made = copied(optimizer), keras_internals.Valueless()

    def build() -> tuple[Any, Any]:
        model = model_fn()
        for built in _models(model):
            require_model(built)
            keras_internals.require_new(
                built, made, "Build it inside model_fn, or use TrainState.from_keras(model)."
            )
        prepared = prepare(model, fresh)
        return prepared, jax.eval_shape(lambda: take(prepared))

    with keras_internals.explaining_values("model_fn"):
        prepared, state = made.run(build)
    for trained in _models(prepared):
        keras_internals.forget_values(trained)
    match_copies(optimizer, fresh)
    return state


def _models(model: Any) -> list[Any]:
    return list(model.values()) if isinstance(model, Mapping) else [model]
