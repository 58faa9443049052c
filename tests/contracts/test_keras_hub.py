"""Backbones and tasks of KerasHub through the checks of the contract table, bit for bit against Keras."""

import warnings

import jax
import pytest

from tests.contracts import test_contracts as contract
from tests.interop import test_keras_in_flax as in_flax
from tests.support.cases import Case
from tests.tables.keras_hub_backbones import ROWS, TASKS

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore"),  # of KerasHub, about its own layers
]


@pytest.fixture(scope="session")
def hub():
    """KerasHub, which is imported by these tests alone: it takes seconds, and brings TensorFlow with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras_hub")


TESTED = [*(row for row in ROWS if not row.not_built), *TASKS]


@pytest.fixture(params=[pytest.param(row, id=row.name) for row in TESTED], scope="session")
def case(request, hub):
    """Every row of the tables, in turn."""
    yield Case(request.param.row(hub))
    jax.clear_caches()  # programs of a row are of no use to the next


def test_every_public_backbone_has_a_row(hub):
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted(name for name in dir(hub.models) if name.endswith("Backbone"))


def test_abstract_has_the_same_leaves(case):
    contract.test_abstract_has_the_same_leaves(case)


def test_steps_equal_fit(case):
    contract.test_steps_equal_fit(case)


def test_checkpoint_round_trips_into_a_second_build(case, tmp_path):
    contract.test_checkpoint_round_trips_into_a_second_build(case, tmp_path)


def test_flax_gives_the_numbers_of_keras(case):
    in_flax.test_every_row_gives_the_layer_s_numbers(case, training=True)
