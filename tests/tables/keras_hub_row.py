"""What a row of KerasHub is: a public class at a tiny size, and the data that it is trained on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from tests.support.weights import drawn_by_numpy
from tests.tables import contracts

VOCABULARY = 31
TOKENS = 6  # of a sequence, where a model takes any number
SIDE = 32  # of an image, in pixels
STEPS = 2
COUNT = STEPS * contracts.SIZE


class HubModel(NamedTuple):
    """A public class of `keras_hub.models`; nothing here imports KerasHub."""

    name: str
    config: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]  # arguments; a function is given keras_hub
    shapes: Mapping[str, tuple[int, ...]] = {}  # of inputs whose free dimensions are no tokens and no pixels
    values: Mapping[str, Any] = {}  # of inputs that can't be any number
    inexact: str = ""  # why the steps are those of fit but for rounding; empty: they are the same bits
    not_built: str = ""  # why it is not in the tests at all
    task: bool = False  # compiled as the class itself does it, for labels

    def make(self, hub: Any) -> keras.Model:
        """A fresh one, with weights from numpy, which is quicker than a program for each shape."""
        keras.utils.set_random_seed(80)
        with drawn_by_numpy():
            config = self.config(hub) if callable(self.config) else self.config
            return getattr(hub.models, self.name)(**config)

    def build(self, hub: Any) -> keras.Model:
        """Compiled: a task as its class does it, a backbone so that every output has a loss."""
        model = self.make(hub)
        if self.task:
            model.compile()
        else:
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        return model

    def row(self, hub: Any) -> contracts.Row:
        """As a row of the contract table."""
        model, rng = self.make(hub), np.random.default_rng(81)  # the same data in whatever order rows run
        x = keras.tree.map_structure(partial(self._drawn, rng), model.input)
        weights = [[v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]
        batch = keras.tree.map_structure(lambda values: values[: contracts.SIZE], x)
        outputs, _ = jax.eval_shape(model.stateless_call, *weights, batch)
        y = keras.tree.map_structure(partial(self._target, rng), outputs)
        return contracts.Row(
            self.name,
            partial(self.build, hub),
            x,
            y,
            steps=STEPS,
            heavy=True,
            exact=not self.inexact,
        )

    def _target(self, rng: np.random.Generator, output: Any) -> np.ndarray:
        shape = (COUNT, *output.shape[1:])
        return _labels(rng, 0, shape[-1], shape[:-1]) if self.task else _normal(rng, shape)

    def _drawn(self, rng: np.random.Generator, spec: Any) -> np.ndarray:
        """Values for an input: what the row says, else what its name and dtype call for."""
        dtype = keras.backend.standardize_dtype(spec.dtype)
        if spec.name in self.values:
            return np.stack([np.asarray(self.values[spec.name], dtype)] * COUNT)
        shape = (COUNT, *self.shapes.get(spec.name, _filled(spec.shape[1:])))
        if "mask" in spec.name:
            return _all_but_the_last(shape).astype(dtype)
        if np.issubdtype(dtype, np.integer):
            low, high = (0, 2) if spec.name == "segment_ids" else (1, VOCABULARY)
            return _labels(rng, low, high, shape).astype(dtype)
        return _normal(rng, shape)


def _filled(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    free = SIDE if len(shape) > 1 else TOKENS
    return tuple(free if size is None else size for size in shape)


def _all_but_the_last(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.ones(shape, "int32")
    mask[:, -1:] = 0
    return mask


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


def _labels(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(low, high, shape).astype("int32")
