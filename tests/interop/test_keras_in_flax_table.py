"""Every layer of the table through every operation of Flax, against Keras's own numbers."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from docs.generate import interop as interop_page
from tests.support.capabilities import newest
from tests.support.thinning import LATER
from tests.tables.keras_in_flax_operations import OPERATIONS, Case
from tests.tables.keras_in_flax_rows import ROWS


def parameters(rows):
    return [pytest.param(row, id=row.name, marks=marks(row)) for row in rows]


def marks(row):
    if row.heavy and row.name != "MobileNetV3Small":  # one deep network is enough in the slow pass
        return LATER
    return [] if row.fast else [pytest.mark.slow]


@pytest.fixture(params=parameters(row for row in ROWS if not row.refused), scope="module")
def case(request):
    yield Case(request.param)
    jax.clear_caches()  # programs of a row are of no use to the next


@pytest.mark.every(fast=2, slow=5)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_cell(case, operation):
    OPERATIONS[operation](case)


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_what_can_t_run_on_jax_says_so(row):
    """Keras says it when the layer is made, the bridge when a call is traced."""

    def call():
        module = kfb.ToNNX(row.build())
        return nnx.jit(lambda module: module(*row.args, training=True))(module)

    with pytest.raises((ImportError, kfb.UnsupportedLayerError), match=row.refused):
        call()


@newest
def test_the_page_shows_the_table():
    text = interop_page.PAGE.read_text()
    assert interop_page.written(text) == text, "python -m docs.generate.interop"


def test_the_table_is_as_large_as_it_says():
    assert len([row for row in ROWS if not row.refused]) >= 52


@pytest.mark.slow
def test_with_nnx_mode_switched_on():
    """The flag is read at the first import of Keras: the fast rows again, in a process of their own."""
    path = f"{Path(__file__)}::test_cell"
    command = [sys.executable, "-m", "pytest", "-m", "not slow and not full", "-x", path]
    environment = {**os.environ, "KERAS_NNX_ENABLED": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed" in result.stdout
