"""What tests of hostile configs share."""

import pytest

import keras_flax_bridge as kfb
from tests.support import hostile


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A `.keras` file and a state of a model that optax trains."""
    model = hostile.small(kfb.OptaxOptimizer("adamw", learning_rate=1e-3))
    path = tmp_path_factory.mktemp("good") / "good.keras"
    model.save(path)
    return path, kfb.TrainState.from_keras(model)
