"""Looks a wrong word up: in the table first, then among the names that resemble it."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

from keras_flax_bridge.tree.words.word import ANY, Word

_ROOMS = {
    "migrate": "kfb.migrate.",
    "callbacks": "kfb.callbacks.",
}  # other public names are `kfb.` and a name
_SENTENCE = r"^ +{name}: (.+?)(?:[.;:](?:\s|$)|\n\n|\n +\w+: |\Z)"


class Answer(NamedTuple):
    """The answer to a wrong name.

    Attributes:
        right: an argument, an attribute, or a name with dots such as ``kfb.restore``; "" for none.
        why: a sentence that explains how to use it.
    """

    right: str
    why: str

    @property
    def is_name(self) -> bool:
        """Whether the answer is a dotted name, which needs no further explanation."""
        return "." in self.right


@cache
def _table(kind: str) -> dict[tuple[str, str], Word]:
    from keras_flax_bridge.tree.words.table import WORDS  # only needed for an error

    rows = ((word, word.doors.split(), word.guesses.split()) for word in WORDS[kind])
    return {(door, guess): word for word, doors, guesses in rows for door in doors for guess in guesses}


def known(kind: str, door: str, guess: str) -> Answer | None:
    """The entry for a name in the table of arguments, attributes or options of a public function or class.

    >>> known("arguments", "kfb.make_train_step", "tx").right
    'optimizer'
    """
    word = _table(kind).get((door, guess))
    return None if word is None else Answer(word.right, word.why)


def answer(kind: str, door: str, guess: str, names: Iterable[str], about: Callable[[str], str]) -> Answer:
    """The answer to a wrong name: from the table, otherwise the most similar name, otherwise a general one.

    >>> answer("arguments", "kfb.verify", "stpe", ["path", "step"], "Pass {}.".format)
    Answer(right='step', why='Pass step.')
    """
    found = known(kind, door, guess)
    if found is None:
        right = _similar(guess, names)
        found = Answer(right, about(right)) if right else known(kind, door, ANY)
    return found or Answer("", "")


def _similar(guess: str, names: Iterable[str]) -> str:
    lower = {name.lower(): name for name in names}
    close: list[str] = difflib.get_close_matches(guess.lower(), lower, n=1, cutoff=0.7)
    return lower[close[0]] if close else ""


def public_name(thing: Any) -> str:
    """The name of a public function or class of the package, as its documentation writes it."""
    room = thing.__module__.split(".")[1]
    return f"{_ROOMS.get(room, 'kfb.')}{thing.__qualname__}"


def about_argument(function: Any, name: str) -> str:
    """The first sentence of a docstring on an argument.

    >>> about_argument(about_argument, "name")
    'name= is one of its arguments.'
    """
    lines = inspect.getdoc(function) or ""
    found = re.search(_SENTENCE.format(name=re.escape(name)), lines, re.MULTILINE | re.DOTALL)
    said = " ".join(found[1].split()) if found else "one of its arguments"
    return f"{name}= is {said}."
