"""The contract table: every row is a model and its data, and goes through every check.

One entry adds a model and all of its tests. Rows that are not `fast` run in the second pass.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from tests.support.capabilities import where
from tests.support.models import (
    applications,
    freezing,
    graphs,
    optimizers,
    preprocessing,
    sequences,
    stateful,
)
from tests.support.models import subclassed as sub

RNG = np.random.default_rng(0)
SIZE = stateful.SIZE  # rows of one batch
STEPS = 50


class Row(NamedTuple):
    """A model and the data it trains on: as many rows as `steps` batches need."""

    name: str
    build: Callable[[], keras.Model]
    x: Any
    y: Any
    sample_weight: Any = None
    fast: bool = False
    steps: int = STEPS
    heavy: bool = False  # seconds to compile: it goes through the cheaper checks alone
    exact: bool = True  # False: XLA fuses the two programs otherwise, so that the last bits differ from fit's
    looped: bool = True  # False: on some CPUs XLA rounds a convolution otherwise inside a loop
    in_lists: Callable[[], keras.Model] | None = None  # where Keras has some state in no list, and loses it
    tolerance: float = 1e-5  # of a vectorised program against a single one, relative to the largest value

    def kept_by_keras(self) -> keras.Model:
        """The model that `fit`, `evaluate` and `predict` are compared on."""
        return (self.in_lists or self.build)()

    def batches(self, count: int | None = None) -> Iterator[tuple]:
        """The first batches, in the order in which `fit` without shuffling takes them."""
        parts = tuple(part for part in (self.x, self.y, self.sample_weight) if part is not None)
        for i in range(self.steps if count is None else count):
            yield keras.tree.map_structure(lambda a, i=i: a[i * SIZE : (i + 1) * SIZE], parts)

    @property
    def data(self) -> dict:
        """What `fit` and `evaluate` are called with."""
        return {
            "x": self.x,
            "y": self.y,
            "sample_weight": self.sample_weight,
            "batch_size": SIZE,
            "verbose": 0,
        }


def normal(*shape: int, steps: int = STEPS) -> np.ndarray:
    return RNG.standard_normal((steps * SIZE, *shape)).astype("float32")


def labels(classes: int, *shape: int, steps: int = STEPS) -> np.ndarray:
    return RNG.integers(0, classes, (steps * SIZE, *shape)).astype("int32")


def weights(*shape: int) -> np.ndarray:
    return abs(normal(*shape))


def padded() -> np.ndarray:
    """Sequences of which the last values are zero, to be masked."""
    x = normal(5, 2)
    x[:, 3:] *= labels(2, 1, 1)
    return x


X, Y = normal(4), normal(2)
SEQUENTIAL = Row("sequential", graphs.sequential, normal(6), labels(3), fast=True)
BFLOAT16 = {"tolerance": 2e-2}

ROWS = [
    SEQUENTIAL,
    Row(
        "functional",
        graphs.functional,
        {"left": normal(4), "right": normal(4)},
        {"sum": normal(1), "difference": normal(1)},
        fast=True,
    ),
    Row("subclassed", partial(sub.subclassed, sub.Subclassed), X, Y, fast=True),
    Row("own_step", partial(sub.subclassed, sub.OwnStep), X, Y),
    Row("recurrent", sequences.recurrent, labels(9, 5), labels(2, 5), weights(5)),
    Row("scaled", optimizers.scaled, normal(6), normal(1), **BFLOAT16),
    Row("lists", graphs.lists, [normal(4), normal(2)], [normal(2), normal(2), normal(1)]),
    Row("nested", graphs.nested, X, normal(1)),
    Row("wrappers", graphs.wrappers, normal(5, 4), normal(1)),
    Row("lazy", sub.lazy, X, Y),
    Row("tied", sub.tied, labels(7, 3), labels(7, 3)),
    Row("reversible", sub.reversible, labels(7, 3), labels(7, 3)),
    Row("own_loop", partial(sub.subclassed, sub.OwnLoop), X, Y),
    Row("own_loss", partial(sub.subclassed, sub.OwnLoss), X, Y),
    Row("own_updates", partial(sub.subclassed, sub.OwnUpdates), X, Y),
    Row("own_compile", sub.own_compile, X, Y),
    Row("counted_metrics", graphs.counted_metrics, X, labels(2, 1).astype("float32")),
    Row("dict_of_one", graphs.dict_of_one, X, {"out": Y}),
    Row("free_targets", graphs.free_targets, X, {"target": Y, "weight": weights(2)}),
    Row("spectral", stateful.spectral, normal(5, 5, 2), normal(1), looped=False),
    Row("adapted", stateful.adapted, X + 3, normal(1)),
    Row("noisy", stateful.noisy, normal(6, 4), normal(1)),
    Row(
        "stateful_rnn",
        stateful.stateful_rnn,
        normal(4, 3),
        normal(1),
        in_lists=stateful.stateful_rnn_in_lists,
    ),
    Row("vector_quantizer", stateful.vector_quantizer, X, normal(4)),
    Row("variational", stateful.variational, X, X),
    Row("regularized", stateful.regularized, X, Y),
    Row("masked", sequences.masked, padded(), normal(5, 1), weights(5)),
    Row(
        "weighted",
        sequences.weighted,
        X,
        {"a": normal(1), "b": labels(3)},
        {"a": weights(), "b": weights()},
    ),
    Row("mixed_bfloat16", optimizers.mixed_bfloat16, normal(6), normal(1), **BFLOAT16),
    Row("mixed_float16", optimizers.mixed_float16, normal(6), normal(1), **BFLOAT16),
    Row("with_exclusions", optimizers.with_exclusions, normal(6), normal(1)),
    Row("with_excluded_variables", optimizers.with_excluded_variables, normal(6), normal(1)),
    *where("MultiOptimizer", [Row("multi_optimizer", optimizers.multi_optimizer, normal(6), normal(1))]),
    *(
        Row(name, lambda make=make: optimizers.small(make()), normal(6), normal(1))
        for name, make in optimizers.OPTIMIZERS.items()
    ),
    Row("frozen_before", freezing.frozen_before, X, normal(1)),
    Row("frozen_after", freezing.frozen_after, X, normal(1)),
    Row("lora", freezing.lora, labels(7, 3), normal(1)),
    Row("quantized", freezing.quantized, normal(6), Y),
    Row("images", preprocessing.images, 255 * weights(8, 8, 3), Y, exact=False, looped=False),
    Row("categories", preprocessing.categories, labels(5, 2), normal(1)),
    *(
        Row(
            family,
            partial(applications.build, family),
            normal(applications.side_of(family), applications.side_of(family), 3, steps=1),
            labels(4, steps=1),
            steps=1,
            heavy=True,
        )
        for family in applications.FAMILIES
    ),
]
