"""Kinds of batches: every row trains, evaluates and predicts as `fit`, `evaluate` and `predict` do."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops
from scipy.sparse import csr_matrix

from tests.support.tensors import NumpyTensor, OnlyDlpack, TorchTensor, WithArray

RNG = np.random.default_rng(0)


class Row(NamedTuple):
    """A compiled model, and the batches of an epoch."""

    name: str
    build: Callable[[], keras.Model]
    batches: list[Any]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


def rows(*sizes: int) -> list[tuple]:
    """Batches of these sizes, of three features and two targets."""
    return [(normal(size, 3), normal(size, 2)) for size in sizes]


def each(change: Callable[[Any], Any]) -> list[tuple]:
    """Batches of which every array is changed."""
    return [tuple(map(change, batch)) for batch in rows(4, 4, 3)]


# --- models


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], weighted_metrics=["mse"])
    return model


def sequential(ready: Callable[[keras.Model], Any] = lambda model: None) -> keras.Model:
    """A Sequential without Input, made ready in some way."""
    keras.utils.set_random_seed(0)
    model = compiled(keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(2)]))
    return ready(model) or model


def fitted(model: keras.Model) -> None:
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    keras.utils.set_random_seed(0)


def called(model: keras.Model) -> None:
    model(np.ones((1, 3)))


def from_config(model: keras.Model) -> keras.Model:
    called(model)
    copy = compiled(keras.Sequential.from_config(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def declared(*shape: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=shape)
    return compiled(keras.Model(inputs, layers.Dense(2)(layers.Dense(4, "tanh")(inputs))))


def sparse() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), sparse=True)
    return compiled(keras.Model(inputs, layers.Dense(2)(inputs)))


def nested() -> keras.Model:
    """Sequentials without Input in a model of a class."""

    class Nested(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(2)])

        def call(self, x):
            return self.inner(x)

    keras.utils.set_random_seed(0)
    return compiled(Nested())


def graph() -> keras.Model:
    """Atoms of several molecules in one array, and the molecule of each."""
    keras.utils.set_random_seed(0)
    atoms = keras.Input((4,), name="atoms")
    molecule = keras.Input((), dtype="int32", name="molecule")
    pool = layers.Lambda(lambda t: ops.segment_sum(t[0], t[1], num_segments=3), output_shape=(8,))
    pooled = pool([layers.Dense(8, "relu")(atoms), molecule])
    return compiled(keras.Model([atoms, molecule], layers.Dense(1)(pooled)))


def molecules(sizes: tuple[int, ...]) -> tuple:
    return (normal(sum(sizes), 4), np.repeat(np.arange(3), sizes).astype("int32")), normal(3, 1)


def pairs() -> keras.Model:
    """Two views of each row, one below the other."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    apart = layers.Lambda(lambda z: ops.abs(ops.subtract(*ops.split(z, 2))), output_shape=(4,))
    return compiled(keras.Model(inputs, layers.Dense(1)(apart(layers.Dense(4)(inputs)))))


def with_constant() -> keras.Model:
    keras.utils.set_random_seed(0)
    each, shared = keras.Input((3,), name="each"), keras.Input((3,), name="shared")
    return compiled(
        keras.Model({"each": each, "shared": shared}, layers.Dense(1)(layers.Add()([each, shared])))
    )


class Crops(keras.Model):
    """A large crop of each image, and four small ones."""

    def __init__(self):
        super().__init__()
        self.dense, self.head = layers.Dense(4), layers.Dense(1)

    def call(self, crops):
        small = ops.mean(ops.reshape(self.dense(crops[1]), (-1, 4, 4)), 1)
        return self.head(self.dense(crops[0]) + small)


class Unpacked(keras.Model):
    """Two rows of outputs for each row of inputs."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return ops.reshape(self.dense(x), (-1, 1))


def own(kind: type[keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(0)
    return compiled(kind())


X, Y = rows(4)[0]

ROWS = [
    Row("last batch smaller", sequential, rows(4, 4, 2)),
    Row("every size", sequential, rows(1, 5, 2)),
    Row("built by fit", partial(sequential, fitted), rows(4, 2)),
    Row("built by a call", partial(sequential, called), rows(4, 2)),
    Row("out of a config", partial(sequential, from_config), rows(4, 2)),
    Row("batch_shape", partial(declared, 4, 3), rows(4, 5, 2)),
    Row("nested sequential", nested, rows(4, 2)),
    Row("graphs", graph, [molecules((4, 3, 5)), molecules((2, 6, 1))]),
    Row("pairs", pairs, [(normal(8, 3), normal(4, 1))] * 2),
    Row("constant", with_constant, [({"each": normal(5, 3), "shared": normal(1, 3)}, normal(5, 1))] * 2),
    Row("crops", partial(own, Crops), [([normal(4, 3), normal(16, 3)], normal(4, 1))] * 2),
    Row("more outputs than inputs", partial(own, Unpacked), [(X, normal(8, 1))] * 2),
    Row("one weight for all", partial(declared, None, 3), [(X, Y, np.array([2.0], "float32"))] * 2),
    Row("one target for all", partial(declared, None, 3), [(X, Y[:1])] * 2),
    Row("one axis more", partial(declared, None, 3), [(X[..., None], Y)] * 2),
    Row("views", partial(declared, None, 3), each(lambda a: np.stack([a, a], 1)[::-1, 0])),
    Row("float64", partial(declared, None, 3), each(lambda a: a.astype("float64"))),
    Row("sparse", sparse, [(csr_matrix(X), Y)] * 2),
    Row("__array__", partial(declared, None, 3), each(WithArray)),
]

# what `fit` itself can't read
TENSORS = {
    "torch": TorchTensor,
    "dlpack": OnlyDlpack,
    "numpy": NumpyTensor,
    "big-endian": lambda array: array.astype(">f4"),
}
