"""The rows and tests that need what older dependencies lack, by the table of capabilities."""

import pytest

from keras_flax_bridge.startup import compat

LACKING = compat.lacking()  # by version: nothing is imported


def needs(*names):
    """Marks a test, or a row, that the installed versions can only run with these entries of the table."""
    lacking = [str(entry) for entry in LACKING if entry.name in names]
    return pytest.mark.skipif(bool(lacking), reason="; ".join(lacking))


def where(name, rows):
    """These rows of a table, or none of them where the installed versions lack the entry."""
    return type(rows)() if compat.TABLE[name] in LACKING else rows


def orbax(name):
    """A function of Orbax's: `load`, `save` or `metadata`, by the name that the installed version has."""
    from orbax.checkpoint import v1  # it takes long, and is not wanted by every process

    older = {"load": "load_pytree", "save": "save_pytree", "metadata": "pytree_metadata"}
    return getattr(v1, name if compat.has("load, save, metadata") else older[name])


newest = needs(*compat.TABLE)  # of what the pages print, which is what the newest versions do
