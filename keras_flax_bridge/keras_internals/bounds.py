"""Bounds the size of a model that is built from an untrusted config."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_flax_bridge.errors import CheckpointError

SLACK = 1 << 24  # numbers that a model may make and not store, such as those of metrics
PATCHING = threading.RLock()  # held while something of Keras's is replaced
Made = Callable[..., None]  # Keras's `Variable.__init__`


@contextlib.contextmanager
def variables_made_by(make: Callable[[Made, Any, Any, Any, Any, dict[str, Any]], None]) -> Iterator[None]:
    """Lets this thread make variables by a function, which is given what Keras itself would do.

    Args:
        make: called as ``make(plain, variable, initializer, shape, dtype, options)``.
    """
    # no hook exists: Keras decides in `Variable.__init__` itself, whoever creates the variable
    base, thread = keras.Variable, threading.get_ident()
    plain: Any = base.__init__

    def __init__(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, **options: Any) -> None:  # noqa: N807
        if threading.get_ident() == thread:
            make(plain, self, initializer, shape, dtype, options)
        else:
            plain(self, initializer, shape=shape, dtype=dtype, **options)

    with PATCHING:
        own = "__init__" in vars(base)
        setattr(base, "__init__", __init__)  # noqa: B010, mypy knows no assignment to a method
        try:
            yield
        finally:
            if own:
                setattr(base, "__init__", plain)  # noqa: B010, as above
            else:
                del base.__init__


@contextlib.contextmanager
def bounded(most: int, where: str) -> Iterator[None]:
    """Context in which no more variables are created than the stored leaves can fill.

    Args:
        most: the elements of all variables together.
        where: which checkpoint, for the error.

    Raises:
        CheckpointError: before a variable is allocated that exceeds it.
    """
    made = 0

    def make(plain: Made, variable: Any, initializer: Any, shape: Any, dtype: Any, options: Any) -> None:
        nonlocal made
        made += _elements(shape)
        if made > most:
            raise CheckpointError(
                where,
                got=f"a config of a model of more than {most:,} numbers",
                expected="the model whose variables are stored",
                fix="The config is not that of the stored leaves: build the model yourself and call "
                "restore(path, model).",
            )
        plain(variable, initializer, shape=shape, dtype=dtype, **options)

    with variables_made_by(make):
        yield


def _elements(shape: Any) -> int:
    """The number of elements; 0 if the shape comes from a value, which exists already."""
    sizes = shape if isinstance(shape, (list, tuple)) else (shape,)
    return math.prod(int(size) for size in sizes) if shape is not None and None not in sizes else 0
