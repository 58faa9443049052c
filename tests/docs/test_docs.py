"""What the README and the pages name is there. That the site builds is seen by ``make docs``."""

import re
from pathlib import Path

import pytest

from docs.generate import rooms as floors_figure

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_that_a_page_names_exist(page):
    named = set(re.findall(r"`make (?:\w+=\S+ )*([a-z-]+)", (ROOT / page).read_text()))
    rules = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    assert named
    assert named <= targets


DOCS = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_in_a_repository_browser(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)
    lines = [line for tree in trees for line in tree.split("\n") if line and not line.startswith(":")]
    listed = {re.fullmatch(r"(?:.* <)?([\w-]+)>?", line)[1] for line in lines}
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_the_figure_of_the_floors_is_that_of_the_test():
    assert floors_figure.figure() == floors_figure.FIGURE.read_text(), "python -m docs.generate.rooms"


def test_the_changelog_keeps_its_form():
    headings = re.findall(r"^##+ .*$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = r"## \[Unreleased\]|## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d"
    kind = r"### (Added|Changed|Deprecated|Removed|Fixed|Security)"
    assert headings[0] == "## [Unreleased]"
    assert [line for line in headings if not re.fullmatch(f"{version}|{kind}", line)] == []
