"""Types of public arguments and results, by the names that the documentation uses.

Python has no type for trees of arrays: `PyTree` and its aliases document the structure, as in
optax and Flax; for a type checker they are `Any`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import jax
import keras
import numpy as np
import optax

Leaf: TypeAlias = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
PyTree: TypeAlias = Any  # nested dicts, lists, tuples and registered classes, with a `Leaf` at each end
Params: TypeAlias = PyTree  # trainable weights, and trees of the same structure
OptState: TypeAlias = PyTree  # Keras's slots as a nested dict, or the state of optax
Batch: TypeAlias = PyTree  # (x,), (x, y), (x, y, sample_weight), or x
Data: TypeAlias = Any  # what `fit` of Keras takes: arrays and trees of them, datasets, loaders, generators
Shape: TypeAlias = PyTree  # (None, 28, 28), or a list or a dict of such

Optimizer: TypeAlias = keras.optimizers.Optimizer | optax.GradientTransformation
# what `compile` takes; of several models a dict by name
GivenOptimizer: TypeAlias = Optimizer | str | Mapping[str, Any]
Loss: TypeAlias = str | Callable[..., Any] | Sequence[Any] | Mapping[str, Any]
Metrics: TypeAlias = Sequence[Any] | Mapping[str, Any]
# a number or a scalar array, traced or not, or a schedule of Keras's or optax's
LearningRate: TypeAlias = float | jax.Array | Callable[..., Any]
Models: TypeAlias = keras.Model | Mapping[str, keras.Model]

PathLike: TypeAlias = str | os.PathLike[str]
Callbacks: TypeAlias = Sequence[keras.callbacks.Callback] | keras.callbacks.Callback
Logs: TypeAlias = Mapping[str, Any]  # what `fit` reports: scalars by name

Target = TypeVar("Target")  # the type of the argument, which is also the type of the result
State = TypeVar("State")


class BatchIterator(Protocol):
    """An iterator of batches; `__iter__` is not required."""

    def __next__(self) -> Batch:
        """The next batch."""
        ...


class Step(Protocol[State]):
    """A train or an eval step: a state and a batch in, the next state and its logs out."""

    def __call__(self, state: State, batch: Batch, /) -> tuple[State, Logs]:
        """One step."""
        ...
