"""A row of the table."""

from __future__ import annotations

from typing import NamedTuple

ARGUMENTS, ATTRIBUTES, OPTIONS = "arguments", "attributes", "options"  # the kinds of words
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
