"""Batches on a mesh whose rows don't divide over it: the numbers are those without a mesh."""

import jax
import keras
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from keras import layers

import keras_flax_bridge as kfb
from tests.sharding.test_sharding import FSDP, TENSOR, TOLERANCE, build, mesh
from tests.tables import batches

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def rows(*sizes):
    return [(normal(size, 8), normal(size, 4), abs(normal(size))) for size in sizes]


class OwnSum(keras.Model):
    """A model with a train_step and a loss of its own, which knows of no weights."""

    def __init__(self):
        super().__init__()
        self.dense, self.normalize = layers.Dense(4), layers.BatchNormalization()

    def call(self, x, training=False):
        return self.normalize(self.dense(x), training=training)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return keras.ops.sum((y - y_pred) ** 2) / 100

    def train_step(self, state, data):
        return super().train_step(state, data)


def own_sum():
    keras.utils.set_random_seed(0)
    model = OwnSum()
    model.compile("sgd", metrics=["mae"])
    return model


# a model, its batches, and how a step is made
UNEVEN = {
    "normalization, dropout": (build, rows(16, 15), {"mesh": mesh(data=8)}),
    "fewer rows than devices": (build, rows(8, 3), {"mesh": mesh(data=8)}),
    "fsdp": (build, rows(16, 13), {"mesh": mesh(data=8), "rules": FSDP}),
    "tensor": (build, rows(4, 3), {"mesh": mesh(data=2, model=4), "rules": TENSOR}),
    "two axes": (
        build,
        rows(16, 15),
        {"mesh": mesh(data=2, model=4), "batch_spec": P(("data", "model"))},
    ),
    "own train_step and sum": (own_sum, rows(16, 15), {"mesh": mesh(data=8)}),
    "graphs": (
        batches.graph,
        [batches.molecules((4, 3, 5)), batches.molecules((2, 6, 1))],
        {"mesh": mesh(data=8)},
    ),
    "constants": (
        batches.with_constant,
        [({"each": normal(9, 3), "shared": normal(1, 3)}, normal(9, 1))] * 2,
        {"mesh": mesh(data=4)},
    ),
}


def trained(make_model, given, options):
    """The state, logs and outputs after these batches, evaluated on the last one."""
    model = make_model()
    state = kfb.TrainState.from_keras(model, batch=given[0])
    train_step = kfb.make_train_step(model, **options)
    for batch in given:
        state, logs = train_step(state, batch)
    _, evaluated = kfb.make_eval_step(model, **options)(state, given[-1])
    outputs = kfb.make_predict_step(model, **options)(state, given[-1][0])
    return jax.device_get(
        [state.params, state.non_trainable, state.opt_state, state.metrics, logs, evaluated, outputs]
    )


@pytest.mark.every(slow=2)
@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_rows_are_those_of_one_device(case):
    make_model, given, options = UNEVEN[case]
    got, wanted = trained(make_model, given, options), trained(make_model, given, {})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), got, wanted)


def test_uneven_rows_of_several_steps_in_one_call():
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *rows(7, 7))
    reached = []
    for options in ({}, {"mesh": mesh(data=8)}):
        model = build()
        step = kfb.make_train_step(model, steps_per_call=2, **options)
        reached.append(jax.device_get(step(kfb.TrainState.from_keras(model), stacked)[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), *reached)


def test_uneven_rows_are_spread_and_not_computed_on_each_device():
    seen = []

    def look(x):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return x

    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Lambda(look, output_shape=(4,))(layers.Dense(4)(inputs)))
    state = kfb.TrainState.from_keras(model, optimizer="sgd")
    outputs = kfb.make_predict_step(model, mesh=mesh(data=8))(state, normal(15, 8))
    assert outputs.shape == (15, 4)
    assert not seen[-1].is_fully_replicated
