"""Every report has rows, a verdict, JSON, text, and a table for terminals and notebooks."""

import doctest
import inspect
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.reports import Report, Table, as_json
from tests.support import hostile
from tests.tables import reports

PACKAGE = Path(kfb.__file__).parent
ROWS = {row.name: row for row in reports.ROWS}
NAME = "params/dense/kernel"
MARKUP = f'"><script>alert(1)</script><img src=x onerror=y>&amp;[red]{hostile.ESCAPE}'


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


def both(row, text):
    """The reports of an entry: the one that is ok, and the one that is not."""
    return [make(text) for make in (row.fine, row.wrong) if make is not None]


class Elements(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text = set(), set(), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data


def test_a_report_offers_the_whole_protocol(row):
    for report in both(row, NAME):
        assert isinstance(report, Report)
        assert isinstance(report.rows, tuple)
        assert all(isinstance(one, tuple) and one._fields for one in report.rows)
        assert isinstance(report.ok, bool)
        assert str(report)


def test_ok_is_the_verdict(row):
    assert row.fine(NAME).ok is True
    assert row.wrong is None or row.wrong(NAME).ok is False


def test_json_comes_back_as_it_was(row):
    for report in both(row, hostile.ESCAPE):
        found = report.to_json()
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", [name for name in ROWS if name != "weight_map"])  # whose JSON is a file
def test_json_has_the_verdict(name):
    for report in both(ROWS[name], NAME):
        assert report.to_json()["ok"] is report.ok


def test_a_notebook_shows_a_table_of_the_rows(row):
    for report in both(row, NAME):
        page = Elements(report._repr_html_())
        assert {"table", "caption", "th"} <= page.elements
        assert NAME in page.text or not report.rows
        assert report._repr_html_().count("<tr>") > len(report.rows)


def test_no_name_becomes_markup(row):
    for report in both(row, MARKUP):
        html = report._repr_html_()
        page = Elements(html)
        assert page.elements <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "p"}
        assert page.attributes <= {("style", "text-align: right")}
        assert all(c.isprintable() for c in html)
        assert "<script>" in page.text or not any(MARKUP in map(str, one) for one in report.rows)


def test_no_name_acts_on_a_terminal(row):
    for report in both(row, MARKUP):
        file = io.StringIO()
        Console(file=file, width=10_000, color_system=None).print(report)
        for text in (str(report), file.getvalue()):
            assert all(c.isprintable() or c == "\n" for c in text)
            assert not any(line.startswith("forged") for line in text.split("\n"))


def test_the_example_of_its_class_runs(row):
    kind = type(row.fine(NAME))
    examples = doctest.DocTestFinder(recurse=False).find(
        kind, kind.__name__, globs=vars(sys.modules[kind.__module__]).copy()
    )
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert [result.failed for result in results] == [0]
    assert results[0].attempted > 0


def test_every_report_of_the_package_is_in_the_table():
    """A class that draws itself in a notebook is a report, or the table that draws them."""
    tested = {type(row.fine(NAME)) for row in ROWS.values()}
    assert {kind.__name__ for kind in tested} == {
        kind.__name__
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("keras_flax_bridge")
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if "_repr_html_" in vars(kind) and kind is not Report
    }


def test_a_number_that_json_lacks_is_a_string():
    assert as_json((float("nan"), float("-inf"), 1.5)) == ["nan", "-inf", 1.5]


def test_a_table_without_rows_has_its_title():
    assert str(Table("nothing differs", ("path",), ())).splitlines()[0] == "nothing differs"
    assert "nothing differs" in Table("nothing differs", ("path",), ()).to_html()
