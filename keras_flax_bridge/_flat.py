"""The trees of a state as one list of leaves while nobody looks at them: JAX takes a list faster than dicts.

A compiled step gives a state that holds such a list in place of its trees. The first look at one of them
makes all of them and drops the list, since a dict may be changed in place. Each change of a state is one
call into C: an interrupt comes before or after it.
"""

from __future__ import annotations

import dataclasses
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

_KEY = "_flat"
_UNFOLDING = threading.RLock()


class Flat(NamedTuple):
    """Leaves in place of trees, and whose they are.

    Attributes:
        leaves: in the order of `program.tree`.
        program: gave them; it knows the names of the trees, and the `PyTreeDef` of a dict of them.
    """

    leaves: list[Any]
    program: Any


class Foldable:
    """A state whose trees may be held as leaves."""

    if not TYPE_CHECKING:  # with it, any attribute would be right

        def __getattr__(self, name: str) -> Any:
            own = unfolded(self)
            return own[name] if name in own else object.__getattribute__(self, name)  # says what is wrong

    def __getstate__(self) -> dict[str, Any]:  # of a copy, or a pickle
        return {name: value for name, value in unfolded(self).items() if name != _KEY}

    def __dir__(self) -> list[str]:
        unfolded(self)
        return [name for name in super().__dir__() if name != _KEY]


_look = getattr(Foldable, "__getattr__", None)


def held(state: Any) -> Flat | None:
    """What a state holds in place of trees; None if it has one of them, or is no state."""
    own = getattr(state, "__dict__", {})
    flat = own.get(_KEY)
    return flat if flat is not None and own.keys().isdisjoint(flat.program.names) else None


def hold(state: Any, step: Any, flat: Flat) -> None:
    """Gives a state a step, and leaves in place of its trees."""
    object.__setattr__(state, "__dict__", _holding(state, step, flat))


def after(state: Any, step: Any, flat: Flat) -> Any:
    """The state after a step, holding leaves."""
    return like(state, _holding(state, step, flat))


def like(state: Any, fields: dict[str, Any]) -> Any:
    """A state of these fields: `state.replace(...)` at a tenth of its time, which every step pays."""
    new = object.__new__(type(state))
    object.__setattr__(new, "__dict__", fields)
    return new


def _holding(state: Any, step: Any, flat: Flat) -> dict[str, Any]:
    kind: Any = type(state)
    names = flat.program.names
    own = {name: value for name, value in vars(state).items() if name not in names}
    if _can_hold(kind, names):
        return {**own, "step": step, _KEY: flat}
    return {**own, "step": step, **flat.program.tree.unflatten(flat.leaves), _KEY: None}


@cache
def _can_hold(kind: Any, names: tuple[str, ...]) -> bool:
    """Whether a look at a tree that isn't there comes to `Foldable`."""
    return kind.__getattr__ is _look and not any(hasattr(kind, name) for name in names)


def unfolded(state: Any) -> dict[str, Any]:
    """The fields of a state, its trees made of the leaves that it may hold; what was set since stays."""
    own = vars(state)
    if own.get(_KEY) is not None:
        with _UNFOLDING:
            flat = own.get(_KEY)
            if flat is not None:
                own.update({**flat.program.tree.unflatten(flat.leaves), **own, _KEY: None})
    return own


def become(state: Any, other: Any) -> None:
    """Gives a state, which somebody holds, the fields of another."""
    fields = {field.name: getattr(other, field.name) for field in dataclasses.fields(state)}
    object.__setattr__(state, "__dict__", {**vars(state), **fields, _KEY: None})
