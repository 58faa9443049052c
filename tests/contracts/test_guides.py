"""The programs of Keras's guides and examples: `kfb.fit` gives the history of `model.fit`, bit for bit."""

import random

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support.cases import differing, values
from tests.support.models import guides

FAST = [guides.compiled]


def fitted(program, fit):
    keras.utils.set_random_seed(1)
    model, given = program()
    np.random.seed(2)
    random.seed(2)
    history = fit(model, **given, batch_size=6, epochs=3, verbose=0)
    return values(model), history.history


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(one, id=one.__name__, marks=[] if one in FAST else pytest.mark.slow)
        for one in (*guides.GUIDES, *guides.EXAMPLES)
    ],
)
def test_a_program_has_the_history_of_fit(program, tmp_path):
    wanted, told = fitted(program, lambda model, **given: model.fit(**given))
    for options in ({}, {"checkpoint": tmp_path}):
        found, history = fitted(
            program, lambda model, options=options, **given: kfb.fit(model, **given, **options)
        )
        assert history == told
        assert differing(found, wanted) == []
