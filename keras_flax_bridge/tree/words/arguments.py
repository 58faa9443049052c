"""Calls that do not fit a signature: a decorator answers them, where Python raises a bare `TypeError`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from keras_flax_bridge.errors import SignatureError
from keras_flax_bridge.tree.words.deprecations import present_arguments
from keras_flax_bridge.tree.words.lookup import public_name
from keras_flax_bridge.tree.words.misfits import Misfit, named, unknown_arguments

F = TypeVar("F", bound=Callable[..., Any])
DOORS: dict[str, Callable[..., Any]] = {}  # the decorated functions and classes, by public name


def door(function: F, name: str | None = None) -> F:
    """Decorates a public function: a call that does not fit its signature raises `SignatureError`.

    A call that fits costs one frame more: it is compared with the signature only after a `TypeError`, and one
    that the body raises is not changed. An old name of an argument is passed on under the present one.

    Args:
        function: the function; a method as its class has it.
        name: its public name; None for the name in its module.
    """
    where = public_name(function) if name is None else name

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            kwargs = present_arguments(where, kwargs)
        try:
            return function(*args, **kwargs)
        except TypeError:
            wrong = misfit(function, where, args, kwargs)
            if wrong is None:
                raise
        raise wrong

    # Keras reads a layer's signature in a way that does not follow `__wrapped__`
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    DOORS[where] = call
    return call  # type: ignore[return-value]


def misfit(
    function: Callable[..., Any], where: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> SignatureError | None:
    """The error for arguments that a function does not take; None if it takes them."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        parameters = list(signature.parameters.values())
        bound = bool(parameters) and parameters[0].name in ("self", "cls")
        return Misfit(where, function, parameters[bound:], args[bound:], kwargs).error()
    return None


def require_known(
    where: str, given: Iterable[str], names: Sequence[str], function: Callable[..., Any]
) -> None:
    """Checks the names in a function's ``**kwargs``.

    Args:
        where: the function's public name.
        given: the names that were passed.
        names: accepted argument names besides those of the signature.
        function: the function.

    Raises:
        SignatureError: if any other was passed.
    """
    unknown = [name for name in given if name not in names]
    if unknown:
        own = named(inspect.signature(function).parameters.values())
        raise unknown_arguments(where, function, unknown, [*own, *names]) from None
