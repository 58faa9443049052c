"""`kfb.fit` of a model that draws in evaluation, too: broken off there, and after `model.fit`."""

import keras
import pytest
from keras import layers

import keras_flax_bridge as kfb
from tests.support.broken_fits import Broken, BrokenError
from tests.support.cases import differing, values
from tests.tables.callbacks import HELD_OUT, X, Y, adam
from tests.training.test_fit_lost import as_in_a_new_process, held, run

__all__ = ["as_in_a_new_process"]  # a fixture


class Drawing(layers.Layer):
    """Draws in evaluation, too; counts its traces."""

    traces = 0

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, x):
        Drawing.traces += 1
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


def drawing():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(X.shape[1:]), Drawing(), layers.Dense(1)])
    model.compile(adam(), "mse")
    return model


@pytest.mark.slow
def test_an_evaluation_that_was_broken_off_draws_no_other_numbers(tmp_path):
    wanted, history = run(tmp_path, build=drawing)
    broken = Broken("on_test_batch_end", 2), Broken("on_epoch_end", 2)
    for _ in broken:
        model, error = run(tmp_path, *broken, build=drawing, checkpoint=tmp_path / "run")
        assert isinstance(error, BrokenError)
        assert differing(held(kfb.restore(tmp_path / "run", drawing())), held(model)) == []
    model, resumed = run(tmp_path, *broken, build=drawing, checkpoint=tmp_path / "run")
    assert differing(held(model), held(wanted)) == []
    assert resumed.history == history.history


@pytest.mark.slow
def test_what_keras_compiled_is_not_compiled_again(tmp_path):
    models, traces = (drawing(), drawing()), []
    for model, fit in zip(models, (keras.Model.fit, kfb.fit), strict=True):
        given = {"batch_size": 8, "verbose": 0, "validation_data": HELD_OUT}
        model.fit(X, Y, **given, shuffle=False)
        before = Drawing.traces
        fit(model, X, Y, **given, shuffle=False)
        traces.append(Drawing.traces - before)
    assert traces[0] == traces[1]
    assert differing(values(models[0]), values(models[1])) == []
