"""What tests of checkpoints share."""

import pytest

import keras_flax_bridge as kfb


@pytest.fixture
def saved(trained, tmp_path):
    """A folder with one checkpoint of the small model after three steps, and what is in it."""
    model, state = trained
    kfb.save(tmp_path / "one", state)
    return tmp_path / "one", model, state
