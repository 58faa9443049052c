"""What `fit`, `evaluate` and `predict` of Keras hold while they run."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals.held import attributes
from keras_flax_bridge.tree.leaves import owned

_FUNCTIONS = {
    kind: kind.replace("_step", "_function") for kind in ("train_step", "test_step", "predict_step")
}
_TREES = {
    "train_step": (
        "trainable_variables",
        "non_trainable_variables",
        "optimizer_variables",
        "metrics_variables",
    ),
    "test_step": ("trainable_variables", "non_trainable_variables", "metrics_variables"),
    "predict_step": ("trainable_variables", "non_trainable_variables"),
}

Values = tuple[list[Any], ...]  # of the model's variables, tree by tree as Keras lists them


class Watcher(Protocol):
    """What is told of the batches of a `fit`."""

    def pulling(self, iterator: Any) -> None:
        """Batches are about to be taken from an iterator."""

    def pulled(self, batches: list[Any]) -> Any:
        """Batches were taken; logs in place of the step's to pass them over, or None to go on."""

    def passed(self, count: int) -> None:
        """So many batches were passed over."""

    def give_way(self) -> None:
        """Another resumes this `fit`."""

    def stepped(self, batch: Any) -> None:
        """The step on one of the batches is done."""


class Function:
    """In place of Keras's compiled train or test function: the same, but that it can be watched.

    Args:
        model: the model that trains.
        kind: `train_step`, `test_step` or `predict_step`.
        step: maps values of variables and a batch to logs and values, as Keras compiled it.

    Attributes:
        watchers: who is told of batches.
        call: the `fit` in which they are told; None for any.
    """

    def __init__(self, model: Any, kind: str, step: Callable[[Any, Any], Any]):
        self.step = step
        self.watchers: list[Watcher] = []
        self.call: Call | None = None
        self._model, self._trees = model, _TREES[kind]
        self._joins = kind == "predict_step"  # the outputs of several batches

    def __call__(self, values: Values, iterator: Iterator[Any]) -> tuple[Any, Values]:
        """The logs and the values after as many batches as Keras takes at once."""
        model = self._model
        if self.call is not None and sys._getframe(1) is not self.call.frame:
            self.call, self.watchers = None, []  # an exception ended what was watched
        # `_jax_state`: what `fit` writes back into the variables, which it has emptied; without this an
        # exception finds the values of an earlier step there
        model._jax_state = dict(zip(self._trees, values, strict=True))
        for watcher in self.watchers:
            watcher.pulling(iterator)
        batches = list(islice(iterator, model.steps_per_execution))
        if not batches:
            raise StopIteration
        passed = [logs for logs in (one.pulled(batches) for one in self.watchers) if logs is not None]
        if passed:
            for watcher in self.watchers:
                watcher.passed(len(batches))
            return passed[0], values
        return self._stepped(values, batches)

    def _stepped(self, values: Values, batches: list[Any]) -> tuple[Any, Values]:
        logs = []
        for batch in batches:
            done: deque[Any] = deque(maxlen=1)
            # one call into C: a Ctrl-C comes before the buffers are taken over, or when the result is kept
            try:
                done.extend(map(self.step, (values,), (batch,)))
            finally:
                if done:
                    values = done[0][1]
                    self._model._jax_state = dict(zip(self._trees, values, strict=True))
                    for watcher in self.watchers:
                        watcher.stepped(batch)
            logs.append(done[0][0])
        if self._joins and len(logs) > 1:
            return jax.tree.map(lambda *parts: np.concatenate(parts), *logs), values
        return logs[-1], values


class Call(NamedTuple):
    """A `fit` of Keras that runs, found from below it.

    Attributes:
        frame: its frame.
        callbacks: its list of callbacks.
        iterator: its iterator over epochs.
        evaluates: whether it was given data to evaluate on.
    """

    frame: Any
    callbacks: Any
    iterator: Any
    evaluates: bool

    @classmethod
    def of(cls, model: Any) -> Call:
        """The `fit` of a model that calls this."""
        frame: Any = sys._getframe(1)
        while not _is_fit(frame, model):
            frame = frame.f_back
        own = frame.f_locals
        return cls(frame, own["callbacks"], own["epoch_iterator"], own["validation_data"] is not None)

    def is_among(self, frame: Any) -> bool:
        """Whether it is a frame or one of its callers."""
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def _is_fit(frame: Any, model: Any) -> bool:
    # Keras hands neither its list of callbacks nor its iterator to anyone, nor what it held out
    own = frame.f_locals if frame.f_code.co_name == "fit" else {}
    return own.get("self") is model and "epoch_iterator" in own


def watch(model: Any, watcher: Watcher, call: Call | None = None) -> Callable[[], None]:
    """Lets `watcher` be told of the batches of the `fit` that runs; the result ends that.

    Args:
        model: the model.
        watcher: is told.
        call: the `fit`, for who can't know that an exception ended it.
    """
    function = model.train_function
    if not isinstance(function, Function):
        step = _compiled(function) or _one_batch(function)
        function = model.train_function = Function(model, "train_step", step)
    if call is not None and function.call is not None and function.call.frame is not call.frame:
        function.watchers = []
    function.watchers.append(watcher)
    function.call = call

    def end() -> None:
        if watcher in function.watchers:
            function.watchers.remove(watcher)
        if not function.watchers:
            function.call = None

    return end


def give_way(model: Any) -> None:
    """Tells those who watch the `fit` of a model that another resumes it."""
    function = model.train_function
    for watcher in function.watchers if isinstance(function, Function) else ():
        watcher.give_way()


@contextlib.contextmanager
def functions(model: Any, *kinds: str) -> Iterator[None]:
    """While it holds, Keras makes its train or test function as a `Function`."""
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(replaced(model, f"make_{_FUNCTIONS[kind]}", partial(_make, model, kind)))
        yield


@contextlib.contextmanager
def stepping(model: Any, steps: Mapping[str, Callable[[Any, Any], Any]]) -> Iterator[None]:
    """While it holds, Keras runs these steps, on values of variables and a batch, in place of its own.

    Args:
        model: the model.
        steps: by `train_step`, `test_step` or `predict_step`.
    """
    with contextlib.ExitStack() as stack:
        for kind, step in steps.items():
            name = _FUNCTIONS[kind]
            function = Function(model, kind, step)
            stack.enter_context(replaced(model, name, function))
            stack.enter_context(replaced(model, f"make_{name}", lambda force=False: None))
        yield


def _make(model: Any, kind: str, force: bool = False) -> None:
    name = _FUNCTIONS[kind]
    there = getattr(model, name)
    if isinstance(there, Function) and not force:
        return
    step = None if force else _compiled(there)
    setattr(model, name, Function(model, kind, step or _made(model, name)))


def _compiled(function: Any) -> Any:
    """The step that a function of Keras's own runs, compiled before; None for another function."""
    # `step_function`: where Keras's loop over an iterator holds it, and nowhere else
    own = isinstance(function, FunctionType) and function.__module__.startswith("keras.")
    return attributes(function).get("step_function") if own else None


def _made(model: Any, name: str) -> Callable[[Any, Any], Any]:
    """A step that Keras makes now."""
    found: list[Any] = []
    # `_make_function`: gets the compiled step, which Keras then keeps in a closure only
    own = model._make_function

    def noticed(step: Any, *args: Any) -> Any:
        function = own(step, *args)
        found[:] = [(step, function)]
        return function

    with replaced(model, "_make_function", noticed):
        getattr(type(model), f"make_{name}")(model, force=True)
    made = getattr(model, name)
    return next((step for step, function in found if function is made), None) or _one_batch(made)


def _one_batch(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The step of a function that a class makes itself, on an iterator."""
    return lambda values, batch: function(values, iter((batch,)))


@contextlib.contextmanager
def started(model: Any, begin: Callable[[Any], None]) -> Iterator[None]:
    """While it holds, `fit` and `evaluate` hand over their iterator over epochs before they begin."""
    # `_symbolic_build`: the first that Keras calls with it, and it knows no callback yet
    own = model._symbolic_build

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        own(iterator=iterator, data_batch=data_batch)
        if iterator is not None:
            begin(iterator)

    with replaced(model, "_symbolic_build", build):
        yield


@contextlib.contextmanager
def unfinished(optimizer: Any) -> Iterator[Callable[[], None]]:
    """While it holds, `fit` doesn't overwrite weights with their averages; the result does so.

    `fit` overwrites them when an exception ends it, too, and then the last step would be lost.
    """
    asked: list[Any] = []

    def finish() -> None:
        while asked:
            type(optimizer).finalize_variable_values(optimizer, asked.pop())

    if not hasattr(optimizer, "finalize_variable_values"):
        yield finish
        return
    with replaced(optimizer, "finalize_variable_values", asked.append):
        yield finish


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object, set past Keras's tracking of attributes, for as long as it holds."""
    attributes = vars(owner)
    before = attributes.get(name, attributes)
    attributes[name] = value
    try:
        yield
    finally:
        if before is attributes:
            attributes.pop(name, None)
        else:
            attributes[name] = before


def held(model: Any) -> list[tuple[Any, Any]]:
    """Variables with the values that `fit` holds, where it has taken them out of the variables."""
    # `_jax_state_synced`: whether they are in the variables
    if not getattr(model, "_jax_state", None) or model._jax_state_synced:
        return []
    return _pairs(model, model._jax_state)


def kept(model: Any) -> Callable[[], list[tuple[Any, Any]]]:
    """Gives later what the variables, except those of metrics, hold now, as far as it is still there."""
    if getattr(model, "_jax_state", None) and not model._jax_state_synced:
        state = model._jax_state  # each step makes a new one
        return lambda: _whole(_pairs(model, state))
    slots = model.optimizer.variables if model.optimizer is not None else []
    pairs = [(v, v.value) for v in (*model.trainable_variables, *model.non_trainable_variables, *slots)]
    return lambda: _whole(pairs)


def copied(model: Any) -> Callable[[], list[tuple[Any, Any]]]:
    """Gives later what the variables that evaluation may assign hold now.

    Seeds, counts and states are copied, since evaluation takes their buffers over; nothing assigns weights.
    """
    entries = [e for e in keras_internals.collect(model).non_trainable if e.kind != keras_internals.FROZEN]
    pairs = [(entry.variable, owned(entry.variable.value)) for entry in entries]
    return lambda: pairs


def _pairs(model: Any, state: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    lists = {
        "trainable_variables": model.trainable_variables,
        "non_trainable_variables": model.non_trainable_variables,
        "optimizer_variables": model.optimizer.variables if model.optimizer is not None else [],
        "metrics_variables": model.metrics_variables,
    }
    return [pair for name, values in state.items() for pair in zip(lists[name], values, strict=True)]


def _whole(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """All of them, or none where a step has taken over a buffer."""
    return [] if any(isinstance(v, jax.Array) and v.is_deleted() for _, v in pairs) else pairs
