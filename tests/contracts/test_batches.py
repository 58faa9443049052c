"""Every kind of batch that `fit` takes, a step takes, with the same numbers."""

import jax
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support.cases import TREES, differing
from tests.tables import batches

pytestmark = pytest.mark.slow


@pytest.fixture(params=batches.ROWS, ids=lambda row: row.name)
def row(request):
    return request.param


def again(batches):
    """A generator, of which `fit` doesn't ask how many rows its arrays have."""
    yield from batches


@pytest.mark.every(slow=2)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_steps_are_those_of_fit(row):
    fitted, model = row.build(), row.build()
    fitting = fitted.fit(again(row.batches), steps_per_epoch=len(row.batches), shuffle=False, verbose=0)
    state = kfb.TrainState.from_keras(model, batch=row.batches[0]).reset_metrics()
    train_step, eval_step = kfb.make_train_step(model), kfb.make_eval_step(model)
    for batch in row.batches:
        state, logs = train_step(state, batch)
    assert {name: [float(value)] for name, value in logs.items()} == fitting.history
    wanted = kfb.TrainState.from_keras(fitted)
    assert not [path for tree in TREES for path in differing(getattr(state, tree), getattr(wanted, tree))]
    evaluated = fitted.evaluate(again(row.batches), steps=len(row.batches), verbose=0, return_dict=True)
    state = state.reset_metrics()
    for batch in row.batches:
        state, logs = eval_step(state, batch)
    assert {name: float(value) for name, value in logs.items()} == evaluated
    x = row.batches[-1][0]
    outputs = kfb.make_predict_step(model)(state, x)
    np.testing.assert_array_equal(outputs, fitted.predict(again([(x,)]), steps=1, verbose=0))


@pytest.mark.parametrize("kind", batches.TENSORS)
def test_tensors_that_fit_can_not_read(kind):
    model = batches.declared(None, 3)
    state = kfb.TrainState.from_keras(model, batch=(batches.X, batches.Y))
    given = jax.tree.map(batches.TENSORS[kind], (batches.X, batches.Y))
    wanted, logs = kfb.make_train_step(model, donate=False)(state, (batches.X, batches.Y))
    train_step = kfb.make_train_step(model, donate=False)
    for _ in range(2):  # the second call knows of them
        reached, seen = train_step(state, given)
        assert seen == logs
        assert not differing(reached.params, wanted.params)
