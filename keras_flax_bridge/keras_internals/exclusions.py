"""Exclusions from weight decay: what an optimizer was given by a method, and its config does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Exclusions(NamedTuple):
    """The arguments of `exclude_from_weight_decay`.

    Attributes:
        pattern: a regular expression that is searched in the names of variables; None for no names.
        ids: the ids of variables.
    """

    pattern: str | None
    ids: frozenset[int]


def exclusions(optimizer: Any) -> Exclusions:
    """The exclusions of one optimizer; inner optimizers have separate ones."""
    # `_exclude_from_weight_decay`, `_exclude_from_weight_decay_pattern`: nothing public has them
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    ids = getattr(optimizer, "_exclude_from_weight_decay", None) or ()
    return Exclusions(None if pattern is None else pattern.pattern, frozenset(ids))


def excludes_variables(optimizer: Any) -> bool:
    """Whether variables were excluded from weight decay as objects, not by name."""
    return bool(exclusions(optimizer).ids)


def exclude(optimizer: Any, pattern: str | None, variables: Iterable[Any]) -> None:
    """Sets the exclusions of an optimizer; both at once, because Keras's method resets omitted arguments."""
    optimizer.exclude_from_weight_decay(list(variables), None if pattern is None else [pattern])


def copy_exclusions(optimizer: Any, fresh: Any, counterparts: Mapping[int, Any]) -> None:
    """Gives one optimizer the exclusions of another.

    Args:
        optimizer: what has them.
        fresh: what is given them.
        counterparts: the variables that `fresh` trains, by the id of the one that `optimizer` was given.
            An excluded variable without a counterpart is not among those that `fresh` trains.
    """
    pattern, ids = exclusions(optimizer)
    if pattern is not None or ids:
        exclude(fresh, pattern, [counterparts[key] for key in ids if key in counterparts])
