"""Classes whose calls and names are answered."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from keras_flax_bridge.tree.words.arguments import door
from keras_flax_bridge.tree.words.deprecations import renamed_attribute
from keras_flax_bridge.tree.words.lookup import public_name
from keras_flax_bridge.tree.words.names import unknown_name

C = TypeVar("C", bound=type)
OWNERS: dict[type, str] = {}  # classes whose attributes are answered, and their public names
_OURS = "keras_flax_bridge"


def doors(*, methods: bool = True, also: tuple[str, ...] = ()) -> Callable[[C], C]:
    """Decorates a public class: wrong arguments and wrong attributes are answered.

    Args:
        methods: False decorates only the constructor, for a class whose methods a library calls.
        also: methods that it has from a library.
    """

    def decorate(cls: C) -> C:
        name = OWNERS[cls] = public_name(cls)
        constructor = inspect.getattr_static(cls, "__init__")
        if inspect.isfunction(constructor):
            cls.__init__ = door(constructor, name)  # type: ignore[misc]
        for base, key in [(cls, key) for key in also] + (_methods(cls) if methods else []):
            method = inspect.getattr_static(base, key)
            if isinstance(method, classmethod):
                setattr(base, key, classmethod(door(method.__func__, f"{name}.{key}")))
            elif inspect.isfunction(method):
                setattr(base, key, door(method, f"{name}.{key}"))
        found = (vars(base)["__getattr__"] for base in cls.__mro__ if "__getattr__" in vars(base))
        look = next(found, object.__getattribute__)  # not `getattr`, which asks the type of a class too
        if not getattr(look, "__module__", "").startswith(_OURS):
            setattr(cls, "__getattr__", _answering(look))  # noqa: B010 - a type checker would take any name
        return cls

    return decorate


def _methods(cls: type) -> list[tuple[type, str]]:
    """The public attributes that the package wrote for a class, with the class that has them."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith(_OURS)]
    return [(base, key) for base in bases for key in vars(base) if not key.startswith("_")]


def _answering(look: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        try:
            return look(self, name)
        except AttributeError as error:
            return missing_attribute(self, name, error)

    return __getattr__


def missing_attribute(thing: Any, name: str, error: AttributeError) -> Any:
    """What stands for an attribute that an object lacks, where its name is an old one.

    Raises:
        UnknownNameError: if it is not; `error` itself where that came out of a property.
    """
    kind = type(thing)
    owner = _owner(kind)
    if name.startswith("__") or owner is None or _is_defined(kind, name):
        raise error
    if renamed := renamed_attribute(owner, name, partial(getattr, thing)):
        return renamed[0]
    names = {*dir(kind), *getattr(thing, "__dict__", ())}
    raise _unless_plain(unknown_name(owner, name, names), error) from None


def _owner(kind: type) -> str | None:
    return next((OWNERS[base] for base in kind.__mro__ if base in OWNERS), None)


def _is_defined(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__)


def _unless_plain(found: AttributeError, error: AttributeError) -> AttributeError:
    return error if type(found) is AttributeError else found


class AnsweringType(ABCMeta):
    """The type of a class that answers wrong names too, such as ``TrainState.from_model``.

    A subclass may also have an abstract base class.
    """

    if not TYPE_CHECKING:  # with it, any attribute would be right

        def __getattr__(cls, name: str) -> Any:
            owner = _owner(cls)
            if owner is not None and (renamed := renamed_attribute(owner, name, partial(getattr, cls))):
                return renamed[0]
            error = AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
            raise error if owner is None else _unless_plain(unknown_name(owner, name, dir(cls)), error)
