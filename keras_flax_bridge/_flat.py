"""The trees of a state as one list of leaves while nobody looks at them: JAX takes a list faster than dicts.

A compiled step gives a state that holds such a list in place of its trees. The first look at one of them
makes all of them and drops the list, since a dict may be changed in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

_KEY = "_flat"


class Flat(NamedTuple):
    """Leaves in place of trees, and whose they are.

    Attributes:
        leaves: in the order of `program.after`.
        program: gave them; it knows the names of the trees, and as `after` the `PyTreeDef` of a dict of them.
    """

    leaves: list[Any]
    program: Any


class Foldable:
    """A state whose trees may be held as leaves."""

    if not TYPE_CHECKING:  # with it, any attribute would be right

        def __getattr__(self, name: str) -> Any:
            try:
                return unfolded(self)[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

    def __getstate__(self) -> dict[str, Any]:  # of a copy, or a pickle
        return unfolded(self)


def held(state: Any) -> Flat | None:
    """What a state holds in place of trees; None if it has its trees, or is no state."""
    return getattr(state, "__dict__", {}).get(_KEY)


def hold(state: Any, step: Any, flat: Flat) -> None:
    """Gives a state a step, and leaves in place of its trees."""
    own = vars(state)
    for name in flat.program.names:
        own.pop(name, None)
    own.update(step=step, **{_KEY: flat})


def after(state: Any, step: Any, flat: Flat) -> Any:
    """The state after a step: `state.replace(...)` at a tenth of its time, which every step pays."""
    new = object.__new__(type(state))
    vars(new).update(vars(state))
    hold(new, step, flat)
    return new


def unfolded(state: Any) -> dict[str, Any]:
    """The fields of a state, its trees made of the leaves that it may hold."""
    own = vars(state)
    flat = held(state)
    if flat is not None:
        own.update(flat.program.after.unflatten(flat.leaves))
        own.pop(_KEY, None)
    return own


def become(state: Any, other: Any) -> None:
    """Makes of a state, which somebody holds, another one."""
    own, new = vars(state), dict(vars(other))
    own.clear()
    own.update(new)
