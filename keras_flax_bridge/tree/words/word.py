"""A row of the table of wrong words, and one of the table of what is deprecated."""

from __future__ import annotations

from typing import NamedTuple

ARGUMENTS, ATTRIBUTES, OPTIONS = "arguments", "attributes", "options"  # the kinds of words
MODULES = "modules"  # another kind, of names that are deprecated
PLACES = "*"  # positional arguments that are too many
ANY = "**"  # any argument that nothing else answers


class Word(NamedTuple):
    """A right word, and the wrong ones that it answers.

    Attributes:
        right: an argument of the doors, an attribute of theirs, or a name with dots such as ``kfb.restore``.
        why: a sentence that explains how to use it.
        guesses: the wrong words, separated by spaces; or `PLACES`, or `ANY`.
        doors: the public names where they are typed, separated by spaces: functions and classes for
            arguments, modules and classes for attributes, commands for options.
    """

    right: str
    why: str
    guesses: str
    doors: str


class Deprecated(NamedTuple):
    """An old name, which works and warns, and what is to be used in its place.

    Attributes:
        old: an argument of the doors, an attribute of theirs, a command, an option, or the full path of a
            module.
        new: what the code has now: another of the same kind; for an attribute also a name with dots such as
            ``kfb.migrate.to_nnx``.
        doors: as in `Word`; "" for a module.
        since: the minor version in which the warning begins, such as ``"0.2"``.
        removal: the minor version in which the old name goes.
    """

    old: str
    new: str
    doors: str
    since: str
    removal: str
