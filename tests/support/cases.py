"""What the checks on one row of the contract table share: a model, its steps, their results."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
import keras
import numpy as np
import pytest
from keras.src.backend.common import dtypes

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.thinning import LATER
from tests.tables.contracts import ROWS, Row

# most of the time goes to compilation: for programs that run once it is kept short
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

TREES = keras_internals.ModelVariables._fields


def parameters(rows: Iterable[Row]) -> list:
    """Rows as parameters; those that are not fast run in the second pass, most heavy ones in the full run."""
    return [pytest.param(row, id=row.name, marks=_marks(row)) for row in rows]


def _marks(row: Row) -> list:
    if getattr(row, "heavy", False) and row.name not in ("ResNet50", "MobileNetV2"):
        return LATER
    return [] if row.fast else [pytest.mark.slow]


# for checks that compile once more: without the rows that take many seconds to compile
light = pytest.mark.parametrize(
    "case", parameters(row for row in ROWS if not row.heavy), indirect=True, scope="session"
)


class Case:
    """A row with what its checks can share, because none of them changes it."""

    def __init__(self, row: Row):
        self.row = row
        self.batch = next(row.batches())

    def state(self, model: keras.Model, **options: Any) -> kfb.TrainState:
        return kfb.TrainState.from_keras(model, batch=self.batch, **options)

    @cached_property
    def model(self) -> keras.Model:
        return self.row.build()

    @cached_property
    def start(self) -> kfb.TrainState:
        return self.state(self.model)

    @cached_property
    def step(self) -> Any:
        """Compiled once for all checks; it takes over no buffers."""
        return kfb.make_train_step(self.model, donate=False)

    @cached_property
    def after(self) -> tuple:
        return self.step(self.start, self.batch)


@contextmanager
def double() -> Iterator[None]:
    """Everything in float64: what layers are given, and what Keras on JAX lowers to float32 itself."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    lowered = dict(dtypes.BIT64_TO_BIT32_DTYPE)
    dtypes.BIT64_TO_BIT32_DTYPE.pop("float64")
    try:
        with jax.enable_x64(True):
            yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE.update(lowered)
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def values(model: keras.Model) -> dict:
    """Every variable of a model by path, as numpy."""
    named = keras_internals.collect(model)._asdict().items()
    return {(tree, *e.path): np.asarray(e.variable.value) for tree, found in named for e in found}


def differing(a: Any, b: Any) -> list[str]:
    """Paths of the leaves that are not the same bits in two trees."""
    a, b = flatten_tree(a), flatten_tree(b)
    assert a.keys() == b.keys()
    return [join_path(path) for path in a if not np.array_equal(a[path], b[path], equal_nan=_floats(a[path]))]


def equal(a: Any, b: Any) -> bool:
    """Whether two trees have the same leaves, bit for bit."""
    return not differing(a, b)


def _floats(leaf: Any) -> bool:
    return np.issubdtype(np.asarray(leaf).dtype, np.inexact)
