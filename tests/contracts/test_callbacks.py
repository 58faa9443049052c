"""Every row of the tables of `fit`, with and without checkpoints: as Keras's own, bit for bit."""

import contextlib
import functools
import io
import warnings

import pytest

from tests.support import fits
from tests.tables import callbacks, fit_arguments

ROWS = [*callbacks.ROWS, *fit_arguments.ROWS]

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")


def parameters():
    """Rows as parameters, with the reason where Keras has not what they need."""
    for row in ROWS:
        marks = [] if row.fast else [pytest.mark.slow]
        if not row.is_possible:
            marks.append(pytest.mark.skip(reason=f"needs {row.needs}"))
        yield pytest.param(row, id=row.name, marks=marks)


def fitted(row, fit, folder):
    """The result of a row by one of the three ways."""
    fits.seed()
    folder.mkdir()
    model, result = row.build(), fits.Result()
    spies = [fits.Spy(reads=row.reads)] if row.spied else []
    with row.around(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        row.run(row, fit, model, folder, spies, result)
    result.calls = [call for spy in spies for call in spy.calls]
    result.weights, result.files = fits.weights(model), fits.files(folder)
    return result


@functools.cache
def by_keras(name, root):
    row = next(row for row in ROWS if row.name == name)
    return fitted(row, fits.by_keras, root / f"{name} by keras")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("fits")


@pytest.mark.every(slow=5)
@pytest.mark.parametrize("fit", [fits.by_bridge, fits.recorded])
@pytest.mark.parametrize("row", list(parameters()))
def test_a_fit_is_that_of_keras(row, fit, root, tmp_path):
    wanted = by_keras(row.name, root)
    assert fits.differences(fitted(row, fit, tmp_path / "fit"), wanted) == {}
