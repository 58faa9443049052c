"""The step against `fit`, bit for bit, for every row of the table."""

import jax
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from tests import contracts


def values(model):
    """Every variable of a model by path, as numpy."""
    named = V.collect(model)._asdict().items()
    return {(tree, *e.path): np.asarray(e.variable.value) for tree, found in named for e in found}


def differing(a, b):
    assert a.keys() == b.keys()
    return [_paths.join(path) for path in a if not np.array_equal(a[path], b[path], equal_nan=True)]


class Finished(keras.callbacks.Callback):
    """Keeps what the variables are before `fit` overwrites them with their average."""

    def on_epoch_end(self, epoch, logs=None):
        self.values, self.logs = values(self.model), logs


@pytest.fixture
def fitted(row):
    """A model after one epoch of `fit`, with its values and logs."""
    model, finished = row.build(), Finished()
    model.fit(
        row.x,
        row.y,
        sample_weight=row.sample_weight,
        batch_size=contracts.SIZE,
        shuffle=False,
        verbose=0,
        callbacks=[finished],
    )
    return finished


def train(row, model, count=contracts.STEPS):
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    for batch in row.batches(count):
        state, logs = train_step(state, batch)
    return state, logs


def test_fifty_steps_equal_fit(row, fitted):
    model = row.build()
    state, logs = train(row, model)
    state.assign_to(model)
    assert differing(values(model), fitted.values) == []
    if row.name != "own_step":  # fit forgets what an own step reports beyond the metrics
        assert {k: float(v) for k, v in logs.items()} == {k: float(v) for k, v in fitted.logs.items()}
    assert int(state.step) == contracts.STEPS


def test_steps_per_call_equals_single_steps(row):
    single = train(row, row.build(), count=4)
    model = row.build()
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *row.batches(4))
    train_step = kfb.make_train_step(model, steps_per_call=4)
    together = train_step(kfb.TrainState.from_keras(model), stacked)
    assert differing(_paths.flatten(single), _paths.flatten(together)) == []


def test_round_trip_is_the_identity(row):
    model = row.build()
    state, _ = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), next(row.batches()))
    state.assign_to(model)
    again = kfb.TrainState.from_keras(model)
    assert differing(*(_paths.flatten(s) for s in (state.replace(step=again.step), again))) == []


def test_keys_are_those_of_a_second_build(row):
    keras.layers.Dropout(0.1)  # moves Keras's counters of names
    first, second = row.build(), row.build()
    paths = [
        [(tree, e.path) for tree, c in V.collect(m)._asdict().items() for e in c] for m in (first, second)
    ]
    assert paths[0] == paths[1]
    assert len(set(paths[0])) == len(paths[0])


def test_eval_equals_evaluate(row):
    model = row.build()
    train_step = kfb.make_train_step(model, donate=False)
    before, _ = train_step(kfb.TrainState.from_keras(model), next(row.batches()))
    state, eval_step = before, kfb.make_eval_step(model)
    for batch in row.batches(3):
        state, logs = eval_step(state, batch)
    before.assign_to(model)
    parts = jax.tree.map(lambda a: a[: 3 * contracts.SIZE], (row.x, row.y, row.sample_weight))
    x, y, w = parts
    wanted = model.evaluate(x, y, sample_weight=w, batch_size=contracts.SIZE, verbose=0, return_dict=True)
    assert {k: float(v) for k, v in logs.items()} == wanted
    evaluated = kfb.TrainState.from_keras(model)  # layers may draw and count in evaluation too
    assert differing(*(_paths.flatten(s.non_trainable) for s in (state, evaluated))) == []
    untouched = [(s.step, s.params, s.opt_state, s.metrics) for s in (before, state)]
    assert differing(*map(_paths.flatten, untouched)) == []


def test_predict_equals_predict(row):
    model = row.build()
    x = keras.tree.map_structure(lambda a: a[: contracts.SIZE], row.x)
    outputs = kfb.make_predict_step(model)(kfb.TrainState.from_keras(model), x)
    wanted = model.predict(x, batch_size=contracts.SIZE, verbose=0)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), outputs, wanted
    )


def test_abstract_has_the_same_leaves(row):
    abstract = kfb.TrainState.abstract(row.build)
    concrete = kfb.TrainState.from_keras(row.build())
    difference = _paths.diff(_paths.flatten(abstract), _paths.flatten(concrete))
    assert not difference, difference.table()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
