"""The rows and tests that need what older dependencies lack, by the table of capabilities."""

import pytest
from orbax.checkpoint import v1

from keras_flax_bridge.startup import compat


def needs(*names):
    """Marks a test, or a row, that the installed versions can only run with these entries of the table."""
    lacking = [str(compat.TABLE[name]) for name in names if not compat.has(name)]
    return pytest.mark.skipif(bool(lacking), reason="; ".join(lacking))


def where(name, rows):
    """These rows of a table, or none of them where the installed versions lack the entry."""
    return rows if compat.has(name) else type(rows)()


def orbax(name):
    """A function of Orbax's: `load`, `save` or `metadata`, by the name that the installed version has."""
    older = {"load": "load_pytree", "save": "save_pytree", "metadata": "pytree_metadata"}
    return getattr(v1, name if compat.has("load, save, metadata") else older[name])


newest = needs(*compat.TABLE)  # of what the pages print, which is what the newest versions do
