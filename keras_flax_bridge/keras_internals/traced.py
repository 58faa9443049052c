"""Finds the variables that a traced step reads or assigns outside of the values that it was given.

Keras's stateless functions give values to the variables that they list. Any other variable that the traced
code reads is a constant of the compiled step, and what the code assigns to it is lost. Inside of `Traced`
such a variable has the value of the state, or an error names it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import keras
from flax.nnx import tracers

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals.call_sites import site_of
from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.values import holds_value, in_shape_inference, is_moved


class Wanted(Exception):  # noqa: N818  it asks for a second trace, nothing is wrong
    """The traced code uses a variable of a tree that the step could take or give back, and does not.

    Attributes:
        tree: the name of the tree.
        changed: whether the code assigns the variable.
    """

    def __init__(self, tree: str, *, changed: bool = False):
        super().__init__(tree)
        self.tree, self.changed = tree, changed


class Traced(keras.StatelessScope):
    """A scope around all stateless scopes of a step, with the values of the whole state.

    Args:
        given: the variables of the state, and their values at the start of the step.
        wanted: the variables of trees that the step could take as well, with the name of the tree.
        what: the step, in errors.
    """

    def __init__(self, given: Iterable[tuple[Entry, Any]], wanted: Iterable[tuple[Any, str]], what: str):
        given = list(given)
        super().__init__(
            [(entry.variable, value) for entry, value in given],
            collect_losses=True,
            initialize_variables=False,
        )
        self._paths = {id(entry.variable): entry.path for entry, _ in given}
        self._wanted = {id(variable): tree for variable, tree in wanted}
        self._what = what
        self._level = tracers.TraceState()
        self._inner: set[tuple[int, int]] = set()  # a scope and a variable that was assigned in it
        self._error: Exception | None = None
        self.written: set[int] = set()

    def read(self, variable: Any) -> Any:
        """The value of a variable that no inner scope has; None for one that was made during the trace."""
        value = self.state_mapping.get(id(variable))
        if value is not None:
            return value
        self._require_known(variable, "reads")
        return None

    def write(self, scope: Any, variable: Any, value: Any) -> None:
        """Takes up the assignment of a variable that an inner scope was not given."""
        key = id(scope), id(variable)
        if scope is not self and id(variable) in scope.state_mapping and key not in self._inner:
            return  # whoever made the scope takes its value
        self._inner.add(key)
        if id(variable) not in self.state_mapping:
            self._require_known(variable, "assigns")
        elif not self._level.is_valid():
            self._fail(_out_of_reach(variable, self._what))
        else:
            self.state_mapping[id(variable)] = value
            self.written.add(id(variable))

    def _require_known(self, variable: Any, verb: str) -> None:
        if id(variable) in self._wanted:
            self._fail(Wanted(self._wanted[id(variable)]))
        if holds_value(variable) or is_moved(variable):
            self._fail(_unknown(variable, verb, self._what))

    def _fail(self, error: Exception) -> NoReturn:
        # Keras may replace an error that passes through it
        self._error = self._error or error
        raise error

    @contextlib.contextmanager
    def watching(self) -> Iterator[Traced]:
        """The scope is entered, and inner scopes look up in it what they were not given.

        Raises:
            StructureMismatchError: naming a variable that no tree of the state holds.
            Wanted: if the step has to take another tree.
        """
        with _PATCH, self:
            try:
                yield self
            except Exception:
                if self._error is not None:
                    raise self._error from None
                raise
        if self._error is not None:
            raise self._error


def _unknown(variable: Any, verb: str, what: str) -> Exception:
    owner, place = site_of(variable)
    return StructureMismatchError(
        f"variable {variable.path!r}",
        got=f"a variable of {owner} that {place} {verb} while a {what} is traced",
        expected="a variable that a tree of the state holds: the value of another is a constant of the "
        "compiled step, and what is assigned to it is lost",
        fix="Hold it, or the layer that owns it, in an attribute of the model, of a layer, or of the loss or "
        "metric that uses it, before the model is built; then take the state again.",
    )


def _out_of_reach(variable: Any, what: str) -> Exception:
    owner, place = site_of(variable)
    return StructureMismatchError(
        f"variable {variable.path!r}",
        got=f"a variable of {owner} that {place} assigns inside of a transformation, such as jax.grad, "
        f"while a {what} is traced",
        expected="an assignment that the step can hand on",
        fix="Assign it in the call of a layer if it is a variable of the model, and otherwise outside of the "
        "transformation.",
    )


class _Patch:
    """While at least one step is traced, stateless scopes inside of a `Traced` look up in it.

    Keras makes these scopes itself, so that no subclass of them could be passed.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._own: tuple[Callable[..., Any], ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._own = keras.StatelessScope.get_current_value, keras.StatelessScope.add_update
                keras.StatelessScope.get_current_value = _reader(self._own[0])
                keras.StatelessScope.add_update = _writer(self._own[1])
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                keras.StatelessScope.get_current_value, keras.StatelessScope.add_update = self._own


_PATCH = _Patch()


def _reader(own: Callable[..., Any]) -> Callable[..., Any]:
    def get_current_value(scope: Any, variable: Any) -> Any:
        value = own(scope, variable)
        around = None if value is not None else _around(scope)
        return value if around is None else around.read(variable)

    return get_current_value


def _writer(own: Callable[..., Any]) -> Callable[..., Any]:
    def add_update(scope: Any, update: tuple[Any, Any]) -> None:
        around = _around(scope)
        if around is not None:
            around.write(scope, *update)
        own(scope, update)

    return add_update


def _around(scope: Any) -> Traced | None:
    """The `Traced` that a scope is in; none where shapes alone are computed, which needs no values."""
    if in_shape_inference():
        return None
    while scope is not None and not isinstance(scope, Traced):
        scope = getattr(scope, "original_scope", None)
    return scope


@contextlib.contextmanager
def tracking(model: Any, entries: Iterable[Entry]) -> Iterator[None]:
    """Context in which `model.non_trainable_variables` has the untracked of some entries too."""
    variables = [entry.variable for entry in entries if not entry.tracked]
    trainable = [variable for variable in variables if variable.trainable]
    # `_non_trainable_variables`: what a model itself has; a tracked variable could not be taken out again
    own = model._non_trainable_variables
    before = len(own)
    try:
        for variable in trainable:  # no optimizer knows it
            variable.trainable = False
        own.extend(variables)
        yield
    finally:
        del own[before:]
        for variable in trainable:
            variable.trainable = True
