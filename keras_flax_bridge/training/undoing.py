"""What hooks change before a step that is not done then: a resumed run calls them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras_flax_bridge.keras_internals import fitting
from keras_flax_bridge.training import positions

_PLAIN = (bool, int, float, complex, type(None))


class Undo:
    """How the variables of a model, and callbacks, are before hooks are called.

    Args:
        model: the model.
        callbacks: of which numbers are kept; a list that a callback appends to is not.
        draws: whether hooks, or the data that comes next, may draw from global generators.
        evaluates: whether an evaluation comes, which may assign some variables, and takes over all.
        evaluated: what it was before the evaluation that is done as well then.
    """

    def __init__(
        self,
        model: Any,
        callbacks: Iterable[Any] = (),
        *,
        draws: bool = True,
        evaluates: bool = False,
        evaluated: Undo | None = None,
    ):
        self._values = fitting.copied(model) if evaluates else fitting.kept(model)
        self._evaluated = evaluated
        self._generators = positions.generators() if draws else None
        self._kept = [
            (one, {name: value for name, value in vars(one).items() if isinstance(value, _PLAIN)})
            for one in callbacks
        ]

    def values(self) -> list[tuple[Any, Any]]:
        """The variables and their values then, as far as they are still there."""
        return self._values() + (self._evaluated.values() if self._evaluated is not None else [])

    def generators(self) -> positions.Generators:
        """The states of the global generators then."""
        if self._evaluated is not None:
            return self._evaluated.generators()
        return self._generators or positions.generators()

    def callbacks(self) -> None:
        """Lets the callbacks remember what they did then."""
        for callback, attributes in self._kept:
            vars(callback).update(attributes)

    def variables(self) -> None:
        """Gives the variables their values of then."""
        for variable, value in self.values():
            variable.assign(value)
