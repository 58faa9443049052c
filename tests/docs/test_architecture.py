"""The page on the architecture follows the code, and the decision records are whole."""

import re
from pathlib import Path

import pytest

from docs.generate import architecture
from tests.support.capabilities import newest

ROOT = Path(__file__).parents[2]
PAGE = architecture.PAGE.read_text()
RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
CHANGES = [line for line in PAGE[PAGE.index("## To change") :].splitlines() if line.startswith("| ")][1:]


def files(text):
    """The files and folders of the repository that a text names in backticks."""
    return re.findall(r"`((?:keras_flax_bridge|docs|tests|benchmarks|examples)/[\w/.]*)`", text)


@newest
def test_tables_are_those_of_the_code():
    assert architecture.written(PAGE) == PAGE, "python -m docs.generate.architecture"


def test_journeys_are_short():
    for name in architecture.JOURNEYS:
        rows = PAGE.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
        assert 4 <= len(rows) <= 25, name


@pytest.mark.parametrize("page", [architecture.PAGE, *RECORDS], ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page):
    assert [name for name in files(page.read_text()) if not (ROOT / name).exists()] == []


def test_each_change_names_a_file_to_open():
    assert CHANGES
    assert [line for line in CHANGES if not files(line.split("|")[2])] == []


@pytest.mark.parametrize(
    "change",
    ["layer rule", "optimizer", "tree of the state", "file format", "error", "command of the command line"],
)
def test_the_common_changes_are_listed(change):
    assert any(change in line.split("|")[1] for line in CHANGES)


@pytest.mark.parametrize("page", RECORDS, ids=lambda page: page.stem)
def test_a_record_says_why(page):
    headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences", "Tried and measured"]


def test_every_record_is_listed():
    listed = re.findall(r"^decisions/([\w-]+)$", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.stem for page in RECORDS]
