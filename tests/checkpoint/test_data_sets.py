"""No data set of a version is changed, dropped, or left unread."""

import re
from pathlib import Path

import pytest

from tests.checkpoint.test_older_versions import READ
from tests.support.data_sets import ALL, SETS, DataSet, differences, manifest

ROOT = Path(__file__).parents[2]
LISTED = manifest()
FIRST = {"e447da4"}  # what came before the first release; each may only be added to


def test_every_data_set_is_in_the_manifest():
    assert ALL.keys() == LISTED.keys(), "python -m tests.support.data_sets lists a new one"
    assert LISTED.keys() >= FIRST


@pytest.mark.parametrize("name", LISTED)
def test_every_file_is_as_it_was_written(name):
    assert differences(LISTED[name]["files"], ALL[name].checksums()) == {}


@pytest.mark.parametrize("name", SETS)
def test_every_kind_of_a_data_set_is_read(name):
    kinds = {path.split("/")[0] for path in LISTED[name]["files"]} - {"expected.json"}
    assert kinds == SETS[name].kinds
    assert kinds <= READ, "tests/checkpoint/test_older_versions.py has to read these kinds"
    assert kinds >= SETS[min(FIRST)].kinds, "tests/support/older_versions.py writes one of each kind"


def test_every_minor_version_that_was_released_has_a_data_set():
    releases = re.findall(r"^## \[(\d+\.\d+)\.0\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    kept = {entry["version"].rpartition(".")[0] for entry in LISTED.values()}
    assert set(releases) <= kept, "the docstring of tests/support/data_sets.py has the commands"


def test_files_that_differ_are_named(tmp_path):
    for name in ("same", "changed", "dropped"):
        (tmp_path / name).write_text(name)
    before = DataSet(tmp_path).checksums()
    (tmp_path / "changed").write_text("x")
    (tmp_path / "dropped").unlink()
    (tmp_path / "new").write_text("")
    assert differences(before, DataSet(tmp_path).checksums()) == {
        "changed": "was changed",
        "dropped": "is gone",
        "new": "is not in the manifest",
    }
