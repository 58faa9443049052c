"""The record of a training run, and its curves."""

from __future__ import annotations

from typing import Any

import keras

from keras_flax_bridge.errors import BridgeError, StructureMismatchError, printable
from keras_flax_bridge.tree import words

_HELD_OUT = "val_"


@words.doors(methods=False)
class History(keras.callbacks.History):
    """Keras's `History` of a run, with a plot of its curves.

    Example:
        >>> history = History()
        >>> history.epoch, history.history = [0, 1], {"loss": [2.0, 1.0], "val_loss": [2.5, 1.5]}
        >>> len(history.plot().axes)
        1
    """

    def plot(self) -> Any:
        """Plots all logs over epochs: one chart for each metric, validation in the same chart.

        Returns:
            A `matplotlib.figure.Figure`; ``.savefig(path)`` writes it.

        Raises:
            BridgeError: if matplotlib isn't installed.
            StructureMismatchError: if no epoch has ended yet.
        """
        names = [name for name in self.history if not name.startswith(_HELD_OUT)]
        if not names:
            raise StructureMismatchError(
                "history", got="no epochs", expected="one or more", fix="Train for an epoch first."
            )
        figure = _figure()(figsize=(5 * len(names), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            self._draw(axes, name)
        return figure

    def _draw(self, axes: Any, name: str) -> None:
        for key, label in ((name, "training"), (_HELD_OUT + name, "held out")):
            if key in self.history:
                values = self.history[key]
                axes.plot([epoch + 1 for epoch in self.epoch[-len(values) :]], values, label=label)
        # names of metrics may come out of a file: no formula in them is read, and nothing goes to TeX
        axes.set_title(printable(name), parse_math=False, usetex=False)
        axes.set_xlabel("epoch")
        axes.legend()


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BridgeError(
            "history.plot()",
            got="no matplotlib",
            expected="matplotlib",
            fix="Install it: pip install matplotlib.",
        ) from error
    return Figure
