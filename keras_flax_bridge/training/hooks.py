"""A list of callbacks that calls only the hooks they have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import keras

from keras_flax_bridge.keras_internals.callback_hooks import as_numbers, overrides

_KINDS = ("train", "test", "predict")
_REDRAW = 0.05  # seconds: Keras's progress bar redraws no sooner

_WRITERS = frozenset({"ModelCheckpoint", "CSVLogger", "TensorBoard", "RemoteMonitor", "ProgbarLogger"})

Hook = Callable[..., None]


class Hooks(keras.callbacks.CallbackList):
    """Keras's list of callbacks. A batch hook that no callback overrides costs nothing.

    Keras hands every batch to a thread pool, even where no callback has a hook for it. Here hooks are called
    at once, in the order of the list, and the progress bar only when it is due to be drawn again.

    Args:
        callbacks: the callbacks.
        add_history: whether a `History` is added, if there is none.
        add_progbar: whether a progress bar is added, if there is none.
        model: what callbacks get as ``self.model``; None until `attach`.
        params: what callbacks get as ``self.params``.
    """

    def __init__(
        self,
        callbacks: Iterable[Any] | None = None,
        *,
        add_history: bool = False,
        add_progbar: bool = False,
        model: Any = None,
        **params: Any,
    ):
        listed = list(keras.tree.flatten(callbacks)) if callbacks else []
        super().__init__(listed, add_history=add_history, add_progbar=add_progbar, model=model, **params)
        self._listen(*_KINDS)

    def attach(self, model: Any, params: Mapping[str, Any]) -> None:
        """Gives all callbacks their model and parameters."""
        self.set_model(model)
        self.set_params(dict(params))

    def on_train_begin(self, logs: Any = None) -> None:
        """Calls the hook, and looks which batch hooks there are."""
        super().on_train_begin(logs)
        self._listen("train")

    def on_test_begin(self, logs: Any = None) -> None:
        """Calls the hook, and looks which batch hooks there are."""
        super().on_test_begin(logs)
        self._listen("test")

    def on_predict_begin(self, logs: Any = None) -> None:
        """Calls the hook, and looks which batch hooks there are."""
        super().on_predict_begin(logs)
        self._listen("predict")

    def _listen(self, *kinds: str) -> None:
        for hook in (f"on_{kind}_batch_{end}" for kind in kinds for end in ("begin", "end")):
            calls = [_call(callback, hook) for callback in self.callbacks if overrides(callback, hook)]
            setattr(self, hook, _all(calls) if calls else _nothing)


def _nothing(batch: int, logs: Any = None) -> None:
    """The batch hook of a list without any."""


def _all(calls: list[Hook]) -> Hook:
    """Calls hooks with the same logs, which are fetched from the device at most once."""

    def hook(batch: int, logs: Any = None) -> None:
        numbers = _Numbers(logs)
        for call in calls:
            call(batch, numbers)

    return hook


class _Numbers:
    """Logs as Python numbers, fetched when one asks."""

    def __init__(self, logs: Any):
        self._logs = logs
        self._numbers: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        if self._numbers is None:
            self._numbers = as_numbers(self._logs)
        return self._numbers


def _call(callback: Any, hook: str) -> Hook:
    if type(callback) is keras.callbacks.ProgbarLogger:
        return _Bar(callback, hook)

    def call(batch: int, numbers: _Numbers) -> None:
        getattr(callback, hook)(batch, logs=numbers())

    return call


class _Bar:
    """A hook of the progress bar, called no more often than the bar is drawn."""

    def __init__(self, bar: Any, hook: str):
        self._bar, self._name, self._hook = bar, hook, getattr(bar, hook)
        self._due = 0.0

    def __call__(self, batch: int, numbers: _Numbers) -> None:
        now = time.monotonic()
        if now < self._due:
            self._bar.seen = batch + 1  # all that a bar remembers between two drawings
            return
        self._hook(batch, logs=None if "predict" in self._name else numbers())  # it shows no outputs
        self._due = now + _REDRAW


def around(
    callbacks: Any, hook: str, before: Callable[..., None] | None, after: Callable[..., None] | None = None
) -> None:
    """Lets a list of callbacks do something before or after it calls a hook of theirs."""
    inner = getattr(callbacks, hook)

    def call(*args: Any, **kwargs: Any) -> None:
        if before is not None:
            before(*args, **kwargs)
        inner(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)

    vars(callbacks)[hook] = call


def muted(callbacks: Any, is_on: Callable[[], bool]) -> None:
    """Lets a list of callbacks call no hook of a batch that begins while `is_on`."""
    begin, end = callbacks.on_train_batch_begin, callbacks.on_train_batch_end
    now = False

    def begins(*args: Any, **kwargs: Any) -> None:
        nonlocal now
        now = is_on()
        if not now:
            begin(*args, **kwargs)

    def ends(*args: Any, **kwargs: Any) -> None:
        if not now:
            end(*args, **kwargs)

    vars(callbacks).update(on_train_batch_begin=begins, on_train_batch_end=ends)


def of_this_process(callbacks: Iterable[Any]) -> list[Any]:
    """The callbacks that run in this process: of several processes the first writes files and prints."""
    return [one for one in callbacks if jax.process_index() == 0 or not names_of(one) & _WRITERS]


def names_of(callback: Any) -> set[str]:
    """The names of the classes that a callback is of."""
    return {base.__name__ for base in type(callback).__mro__}
