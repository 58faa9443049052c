"""Each model from every writer into every reader, bit for bit, or the refusal that the table states."""

import numpy as np
import pytest

import keras_flax_bridge as kfb
from docs.generate import round_trips as page
from tests.support.capabilities import newest
from tests.tables import round_trips as table
from tests.tables.round_trips import KERAS, READERS, ROWS, WRITERS, unmeasured


@pytest.fixture(
    params=[pytest.param(row, id=row.name, marks=pytest.mark.slow) for row in ROWS], scope="module"
)
def saved(request, tmp_path_factory):
    """A row, the files that the writers made of it, and what each holds."""
    row, folder = request.param, tmp_path_factory.mktemp("saved")
    model, state = table.trained(row)
    writers = {name: write for name, write in WRITERS.items() if (row.name, name) not in table.NO_FILE}
    files = {name: write(folder, model, state) for name, write in writers.items()}
    held = dict.fromkeys(files, table.of_state(state))
    if KERAS in files:
        held[KERAS] = in_keras(row, files[KERAS], held[KERAS])
    return row, files, held


def in_keras(row, path, values):
    """What Keras's file holds: the weights that its own loader gives a second model, and the slots."""
    model = row.fresh()
    model.load_weights(path)
    weights = table.weights(table.of_state(row.state(model)))
    slots = {name: value for name, value in values.items() if name[0] == "opt_state"}
    return slots | {name: value for name, value in weights.items() if name[-1] not in table.NOT_IN_KERAS}


@pytest.mark.filterwarnings(
    "ignore:Skipping variable loading for optimizer"
)  # Keras's loader, on frozen weights
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_held_comes_back(saved, writer, reader):
    row, files, held = saved
    refused = table.refusal(row, writer, reader)
    if writer not in files:
        assert (row.name, writer) in table.NO_FILE
    elif refused is not None:
        with pytest.raises(kfb.BridgeError, match=refused.match):
            READERS[reader].read(row, files[writer])
    else:
        got, wanted = READERS[reader].read(row, files[writer]), READERS[reader].takes(held[writer])
        assert wanted
        assert got.keys() >= wanted.keys()
        assert writer == KERAS or unmeasured(got).keys() == unmeasured(wanted).keys()
        assert [name for name, value in wanted.items() if not same(got[name], value)] == []


def same(a, b):
    return a.dtype == b.dtype and np.array_equal(a, b)


@newest
def test_the_page_shows_the_table():
    text = page.PAGE.read_text()
    assert page.written(text) == text, "python -m docs.generate.round_trips"
