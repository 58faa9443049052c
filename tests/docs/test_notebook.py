"""The notebook is the quickstart page, and runs."""

import warnings

import nbformat
import pytest

from docs.generate import quickstart as quickstart_notebook
from docs.generate.quickstart import NOTEBOOK


def test_the_notebook_is_that_of_the_page():
    written = nbformat.read(NOTEBOOK, as_version=4)
    assert written == quickstart_notebook.notebook(), "python -m docs.generate.quickstart"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the messaging libraries
        from nbclient import NotebookClient
    client = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=300, kernel_name="python3")
    ran = client.execute(cwd=str(tmp_path))
    outputs = [out for cell in ran.cells if cell.cell_type == "code" for out in cell.outputs]
    shown = [out["data"]["text/plain"] for out in outputs if out.output_type == "execute_result"]
    assert "[True, True, True]" in shown
    assert "(81, 88)" in shown
