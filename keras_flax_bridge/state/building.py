"""Building a Keras model, its optimizer and metrics for a state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import (
    BridgeError,
    NotBuiltError,
    StructureMismatchError,
    UnsupportedLayerError,
    said,
)
from keras_flax_bridge.keras_internals.batches import check, described
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
    if not keras_internals.is_overridden(trained, "train_step"):
        check(trained, batch)
    try:
        keras_internals.build(trained, batch)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, BridgeError):
            raise
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
    take: Callable[..., Any], model_fn: Callable[[], Any], optimizer: Any, given: Mapping[str, Any]
) -> Any:
    """The state that `take` returns for the model that `model_fn` builds, as shapes and dtypes.

    Args:
        take: `TrainState.from_keras`.
        model_fn: builds a model, or a dict of models.
        optimizer: the argument of `take`; Keras's are copied.
        given: the other arguments of `take`.

    Raises:
        StructureMismatchError: if the model existed before, or the optimizer was built for another one.
        UnsupportedLayerError: if building the model needs values.
        UnsupportedOptimizerError: if the optimizer can't be copied.
    """
    fresh = copied(optimizer)

    def build() -> Any:
        model = model_fn()
        for built in model.values() if isinstance(model, Mapping) else [model]:
            require_untraced(built)
        return take(model, optimizer=fresh, **given)

    with explaining_concretization():
        state = jax.eval_shape(build)
    match_copies(optimizer, fresh)
    return state


@contextlib.contextmanager
def explaining_concretization() -> Iterator[None]:
    """Explains JAX's error where code under a trace needs the value of an array.

    Raises:
        UnsupportedLayerError: in place of jax's own error.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise UnsupportedLayerError(
            "model_fn",
            got=f"code that needs the values of weights ({type(error).__name__})",
            expected="a model that can be built from shapes only",
            fix="Move that code out of model_fn, or use TrainState.from_keras(model_fn()).",
        ) from error


def require_untraced(model: Any) -> None:
    """Checks that `model_fn` builds a new model.

    Raises:
        StructureMismatchError: if its variables hold values.
    """
    require_model(model)
    if any(
        keras_internals.holds_value(entry.variable)
        for part in keras_internals.collect_layer(model)
        for entry in part
    ):
        raise StructureMismatchError(
            f"model {model.name!r}",
            got="a model that existed before and holds values",
            expected="one that model_fn builds",
            fix="Build it inside model_fn, or use TrainState.from_keras(model).",
        )
