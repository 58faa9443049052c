"""`class_weight` of `fit`: the weight of a row follows from its class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

import jax
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import ArgumentError

_BOTH = "class_weight= makes sample weights: pass the batches without them, or leave class_weight= out."
_FIX = "Pass class_weight={0: 1.0, 1: 5.0}, with batches (x, y) of one output y: classes, or one-hot rows."


def require(class_weight: Any) -> None:
    """Checks the argument.

    Raises:
        ArgumentError: if it is not a mapping of classes to numbers.
    """
    if not isinstance(class_weight, Mapping) or not all(
        isinstance(key, (int, np.integer)) and isinstance(value, Number)
        for key, value in class_weight.items()
    ):
        raise ArgumentError(
            "class_weight",
            got=f"a {type(class_weight).__name__}" + (" of other types" * isinstance(class_weight, Mapping)),
            expected="a dict of classes, which are whole numbers, to weights",
            fix=_FIX,
        )


def weighted(batches: Iterable[Any], class_weight: Mapping[int, float], per_call: int) -> Iterator[Any]:
    """Batches ``(x, y)`` as ``(x, y, sample_weight)``, by Keras's rule.

    Args:
        batches: the batches.
        class_weight: the weight of a class; one that is missing weighs 1.
        per_call: how many batches a step takes at once; more than one have a leading axis of this size.

    Raises:
        ArgumentError: if a batch has sample weights, or not one output.
    """
    for batch in batches:
        x, y = _pair(batch)
        if per_call == 1:
            yield x, y, keras_internals.class_weights(y, class_weight)
        else:
            yield x, y, np.stack([keras_internals.class_weights(one, class_weight) for one in y])


def _pair(batch: Any) -> tuple[Any, Any]:
    is_tuple = isinstance(batch, (tuple, list))
    if is_tuple and len(batch) == 3 and batch[2] is not None:
        raise ArgumentError(
            "class_weight", got="sample weights in the batches too", expected="one", fix=_BOTH
        )
    if not is_tuple or len(batch) < 2 or len(jax.tree.leaves(batch[1])) != 1:
        raise ArgumentError(
            "class_weight", got="batches that are not (x, y) of one output", expected="(x, y)", fix=_FIX
        )
    return batch[0], jax.tree.leaves(batch[1])[0]
