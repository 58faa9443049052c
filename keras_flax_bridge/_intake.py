"""Between a Keras model and a state: build what isn't built, take values out, find where they go back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._leaves import strong
from keras_flax_bridge._transforms import trainee
from keras_flax_bridge.errors import NotBuiltError, UnsupportedLayerError

TREES = ("params", "non_trainable", "opt_state", "metrics")  # as `V.collect` gives them


def built(trained: Any, batch: Any) -> Any:
    """The model, its metrics as far as `batch` tells, and its optimizer, built.

    Raises:
        NotBuiltError: if the model is unbuilt and there is no batch.
        StructureMismatchError: if the optimizer was built for other variables.
    """
    if batch is not None and not V.is_built(trained):
        V.build(trained, batch)
    _require_built(trained)
    if isinstance(trained.optimizer, keras.optimizers.Optimizer):
        V.build_optimizer(trained)
    return trained


def _require_built(model: Any) -> None:
    if not model.built:
        raise NotBuiltError(
            f"model {model.name!r}",
            got="a model without variables",
            expected="a built model",
            fix="Pass batch=, call the model on data, or start it with keras.Input.",
        )


def rebuilt(optimizer: Any) -> Any:
    """Keras optimizers, also in a dict, built once more from their configs; all else as it is."""
    if isinstance(optimizer, Mapping):
        return {name: rebuilt(value) for name, value in optimizer.items()}
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    return optimizer


@contextlib.contextmanager
def needing_no_values() -> Iterator[None]:
    """Says so where code under a trace asked for the value of an array.

    Raises:
        UnsupportedLayerError: in place of jax's own error.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise UnsupportedLayerError(
            "model_fn",
            got=f"code that needs the values of weights ({type(error).__name__})",
            expected="a model that can be built from shapes alone",
            fix="Move that code out of model_fn, or use TrainState.from_keras(model_fn()).",
        ) from error


def take(variables: V.ModelVariables, copy: bool) -> list[list[Any]]:
    """The values of all variables: copies, or the buffers themselves, each once."""
    if copy:
        return [[owned(entry.variable.value) for entry in collection] for collection in variables]
    seen: set[int] = set()
    return [[_once(strong(e.variable.value), seen) for e in collection] for collection in variables]


def _once(value: Any, seen: set[int]) -> Any:
    """A buffer that two variables share is copied for the second: none can be donated twice."""
    if id(value) in seen:
        return jnp.copy(value)
    seen.add(id(value))
    return value


def owned(value: Any) -> Any:
    """A copy of an array in a buffer of its own."""
    return strong(jnp.copy(value))


def zeroed(model: Any, metrics: V.Collection, tree: Any) -> Any:
    """Metric values after a reset."""
    if not metrics:
        return {}
    return metrics.tree([owned(v) for v in V.reset_metrics(model, metrics.leaves(tree, "metrics"))])


def receivers(model: Any, *, optimizer: Any = None, metrics: Any = None) -> dict[str, V.Collection]:
    """The variables of a model that a state can be written to, by the name of the state's tree.

    An uncompiled model without a given optimizer has weights only.
    """
    if not model.compiled and optimizer is None:
        _require_built(model)
        return dict(zip(TREES, V.collect_layer(model), strict=False))  # the first two
    return V.collect(built(trainee(model, optimizer=optimizer, metrics=metrics), None))._asdict()


class Place(NamedTuple):
    """Where one leaf of a state goes: the variable of a model."""

    path: _paths.Path
    variable: Any


def places(model: Any, *, foreign_slots: bool, **parts: Any) -> list[Place]:
    """Where the leaves of a state go in a model.

    Args:
        model: a built model.
        foreign_slots: whether the state's slots are optax's, which a Keras optimizer has no place for.
        **parts: `optimizer` and `metrics` in place of the compiled ones.
    """
    found = receivers(model, **parts)
    if foreign_slots and found.pop("opt_state", V.Collection()):
        _warn_foreign_slots(model)
    return [Place((tree, *e.path), e.variable) for tree, collection in found.items() for e in collection]


def _warn_foreign_slots(model: Any) -> None:
    if isinstance(getattr(model, "optimizer", None), keras.optimizers.Optimizer):
        warnings.warn(
            f"model {model.name!r}: the state was trained by optax, so the slots of the compiled "
            f"{type(model.optimizer).__name__} stay as they are",
            stacklevel=4,
        )
