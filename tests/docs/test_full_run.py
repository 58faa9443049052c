"""The page of the last full run, and what writes it."""

import re

import pytest

import keras_flax_bridge as kfb
from docs.generate import full_run

RECORDED = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.attacks.test_fuzz" name="test_right_or_told[full-10]" time="30"/>
<testcase classname="tests.attacks.test_fuzz" name="test_right_or_told[full-30]" time="90">
<failure/></testcase>
<testcase classname="tests.attacks.test_attacks" name="test_nothing_runs[a]" time="6"><skipped/></testcase>
<testcase classname="tests.attacks.test_attacks" name="test_nothing_runs[b]" time="6"><error/></testcase>
</testsuite></testsuites>"""


def test_the_table_counts_what_pytest_recorded(tmp_path):
    (tmp_path / "full.xml").write_text(RECORDED)
    lines = full_run.table(full_run.read(tmp_path / "full.xml"), "abc", "Python 3").splitlines()
    assert lines[0] == "Commit `abc`, Python 3."
    assert lines[4:] == [
        "| `tests/attacks/test_attacks.py: test_nothing_runs` | 0 | 1 | 1 | 0.2 |",
        "| `tests/attacks/test_fuzz.py: test_right_or_told` | 1 | 1 | 0 | 2.0 |",
        "| all | 1 | 2 | 1 | 2.2 |",
    ]


def test_a_part_leaves_the_others_as_they_are():
    found = full_run.sections(full_run.page({**full_run.sections(""), "saves": "Commit `a`.\n"}))
    assert found == {
        part: "Commit `a`.\n" if part == "saves" else full_run.NOT_RUN for part in full_run.PARTS
    }
    again = full_run.sections(full_run.page({**found, "attacks": "Commit `b`.\n"}))
    assert again == {**found, "attacks": "Commit `b`.\n"}


@pytest.mark.skipif(not full_run.PAGE.exists(), reason="no full run was recorded yet")
def test_the_page_is_of_this_version_and_nothing_failed():
    ran = [text for text in full_run.sections(full_run.PAGE.read_text()).values() if text != full_run.NOT_RUN]
    assert ran
    for section in ran:
        assert f"keras-flax-bridge {kfb.__version__}," in section
        assert re.search(r"^Commit `[0-9a-f]{12}`", section, re.MULTILINE)
        passed, failed = re.search(r"^\| all \| ([\d,]+) \| (\d+) \|", section, re.MULTILINE).groups()
        assert int(passed.replace(",", "")) > 0
        assert failed == "0"
