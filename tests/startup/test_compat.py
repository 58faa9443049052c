"""The table of capabilities: what it says of versions is what is found in them."""

from importlib import metadata

import pytest

from docs.generate import versions
from keras_flax_bridge.startup import compat


@pytest.mark.parametrize("name", compat.TABLE)
def test_an_entry_is_found_exactly_since_its_version(name):
    entry = compat.TABLE[name]
    there = compat.release(metadata.version(entry.package)) >= compat.release(entry.since)
    assert compat.has(name) == there
    assert (entry in compat.lacking()) != there


def test_entries_are_newer_than_the_oldest_supported_version():
    oldest = {name: compat.release(version) for name, version in versions.least().items()}
    early = [name for name, e in compat.TABLE.items() if compat.release(e.since) <= oldest[e.package]]
    assert early == []


def test_the_page_of_versions_is_that_of_the_table():
    page = versions.PAGE.read_text()
    assert versions.written(page) == page, "python -m docs.generate.versions"


def test_what_a_version_lacks_is_none_and_of_no_kind(monkeypatch):
    missing = compat.Capability("it", "keras", "99.0", "keras.optimizers:NoSuch.thing", "Nothing.")
    argument = compat.Capability("argument", "keras", "99.0", "keras.optimizers:Adam(no_such)", "Nothing.")
    monkeypatch.setattr(compat, "TABLE", {"it": missing, "argument": argument})
    for name in compat.TABLE:
        assert compat.find.__wrapped__(name) is None
    assert compat.lacking() == [missing, argument]
    assert str(missing) == "it, there since keras 99.0: Nothing."
