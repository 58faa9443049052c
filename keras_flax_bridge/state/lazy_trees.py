"""Lazily built trees: between compiled steps a state keeps its leaves in a list, for speed.

A compiled step gives a state that holds such a list in place of its trees. The first access to one of them
builds all of them and drops the list, since a dict may be changed in place. Each change of a state is one
call into C: an interrupt comes before or after it.
"""

from __future__ import annotations

import dataclasses
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import State

_KEY = "_flat"
_BUILDING = threading.RLock()


class Form:
    """The tree structure of a list of leaves; one for each compiled program, compared by identity.

    Attributes:
        names: the fields of the state.
        tree: the `PyTreeDef` of a dict of these fields.
    """

    def __init__(self, names: tuple[str, ...], tree: Any):
        self.names, self.tree = names, tree


class Leaves(NamedTuple):
    """Leaves in place of trees, in the order of `form.tree`."""

    leaves: list[Any]
    form: Form


class LazyTrees:
    """A state whose trees may be stored as a flat list of leaves."""

    if not TYPE_CHECKING:  # with it, any attribute would be right

        def __getattr__(self, name: str) -> Any:
            own = materialise(self)
            if name in own:
                return own[name]
            try:
                return object.__getattribute__(self, name)  # says what is wrong
            except AttributeError as error:
                return words.missing_attribute(self, name, error)

    def __getstate__(self) -> dict[str, Any]:  # of a copy, or a pickle
        return {name: value for name, value in materialise(self).items() if name != _KEY}

    def __dir__(self) -> list[str]:
        materialise(self)
        return [name for name in super().__dir__() if name != _KEY]


_access = getattr(LazyTrees, "__getattr__", None)


def lazy_leaves(state: Any) -> Leaves | None:
    """The leaves that a state holds in place of trees; None if it has one of the trees, or is not a state."""
    own = getattr(state, "__dict__", {})
    lazy = own.get(_KEY)
    return lazy if lazy is not None and own.keys().isdisjoint(lazy.form.names) else None


def set_leaves(state: Any, step: Any, lazy: Leaves) -> None:
    """Gives a state a step, and leaves in place of its trees."""
    object.__setattr__(state, "__dict__", _fields(state, step, lazy))


def next_state(state: State, step: Any, lazy: Leaves) -> State:
    """The state after a step, holding leaves; `state.replace` would take ten times as long."""
    new = object.__new__(type(state))
    object.__setattr__(new, "__dict__", _fields(state, step, lazy))
    return new


def _fields(state: Any, step: Any, lazy: Leaves) -> dict[str, Any]:
    kind: Any = type(state)
    names = lazy.form.names
    own = {name: value for name, value in vars(state).items() if name not in names}
    if _can_hold(kind, names):
        return {**own, "step": step, _KEY: lazy}
    return {**own, "step": step, **lazy.form.tree.unflatten(lazy.leaves), _KEY: None}


@cache
def _can_hold(kind: Any, names: tuple[str, ...]) -> bool:
    """Whether access to a missing tree calls `LazyTrees.__getattr__`."""
    return kind.__getattr__ is _access and not any(hasattr(kind, name) for name in names)


def materialise(state: Any) -> dict[str, Any]:
    """The fields of a state, with trees built from its leaves; fields that were set since are kept."""
    own: dict[str, Any] = vars(state)
    if own.get(_KEY) is not None:
        with _BUILDING:
            lazy = own.get(_KEY)
            if lazy is not None:
                own.update({**lazy.form.tree.unflatten(lazy.leaves), **own, _KEY: None})
    return own


def overwrite(state: Any, other: Any) -> None:
    """Overwrites the fields of a state in place with those of another."""
    fields = {field.name: getattr(other, field.name) for field in dataclasses.fields(state)}
    object.__setattr__(state, "__dict__", {**vars(state), **fields, _KEY: None})
