"""The callbacks of a `fit`, and its beginning and end as Keras's own loop makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import jax
import keras

from keras_flax_bridge.keras_internals import fitting
from keras_flax_bridge.training.fit_on_mesh import Placement
from keras_flax_bridge.training.history import History
from keras_flax_bridge.training.hooks import Hooks, of_this_process
from keras_flax_bridge.training.kinds import EVALUATE, TRAIN, Kind
from keras_flax_bridge.training.resuming import tell


class FitHooks(Hooks):
    """The callbacks of a `fit`: those that are given, the record of the run and the progress bar.

    Args:
        model: the model.
        given: the arguments of `fit`.

    Attributes:
        iterator: Keras's iterator over epochs, once it is there.
        at_start: called with it, before callbacks hear anything.
        at_begin: called after callbacks heard of the beginning.
        finish: what `fit` does with the weights once training is over, before the callbacks hear of it.
    """

    def __init__(self, model: Any, given: Mapping[str, Any]):
        callbacks, verbose = given["callbacks"], given["verbose"]
        own = type(callbacks) is keras.callbacks.CallbackList  # taken as it is
        listed = callbacks.callbacks if own else keras.tree.flatten(callbacks) if callbacks else []
        if not own and not any(isinstance(callback, keras.callbacks.History) for callback in listed):
            listed = [*listed, History()]
        bar = not own and verbose != 0 and jax.process_index() == 0
        super().__init__(of_this_process(listed), add_progbar=bar)
        self._fitted = model
        self.epochs = _epochs(given["epochs"])
        self._params = {"verbose": verbose, "epochs": self.epochs}
        self.iterator: Any = None
        self.at_start: Callable[[Any], None] = lambda iterator: None
        self.at_begin: Callable[[], None] = lambda: None
        self.finish: Callable[[], None] = lambda: None

    def starts(self, iterator: Any) -> None:
        """Takes note of Keras's iterator over epochs; the first is that of the training data."""
        if self.iterator is None:
            self.iterator = iterator
            self.at_start(iterator)

    def attach_now(self) -> None:
        """Gives callbacks the model and the number of steps, which is known now."""
        self.attach(self._fitted, {**self._params, "steps": self.iterator.num_batches})

    def say(self, text: str) -> None:
        """Prints a line where this `fit` prints, otherwise logs it."""
        tell(text, self._params["verbose"])

    def on_train_begin(self, logs: Any = None) -> None:
        """Gives callbacks the model, and calls their hooks."""
        self.attach_now()
        super().on_train_begin(logs)
        self.at_begin()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends training as `fit` does."""
        self.finish()
        super().on_train_end(logs)


def _epochs(epochs: int) -> int:
    limit: Any = keras.config.max_epochs  # for debugging
    most: Any = limit()
    return min(epochs, most) if most else epochs


def fitted(
    model: Any, given: Mapping[str, Any], hooks: FitHooks, where: Placement | None
) -> keras.callbacks.History:
    """Keras's own `fit` with these callbacks."""
    with ExitStack() as stack:
        stack.enter_context(functions(model, where, TRAIN, EVALUATE))
        stack.enter_context(fitting.started(model, hooks.starts))
        hooks.finish = stack.enter_context(fitting.unfinished(model.optimizer))
        history: keras.callbacks.History = model.fit(**{**given, "callbacks": hooks})
    return history


def functions(model: Any, where: Placement | None, *kinds: Kind) -> AbstractContextManager[None]:
    """While it holds, Keras's steps run as this package's `fit` needs them, on a mesh if there is one."""
    if where is None:
        return fitting.functions(model, *(kind.method for kind in kinds))
    return where.functions(model, *kinds)
