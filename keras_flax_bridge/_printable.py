"""Text of others as it may be shown: on a terminal, in a log, on a page."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    r"""One line of text in which nothing acts on a terminal or forges a line.

    Names in a file are chosen by whoever wrote it. Control characters, escape sequences, line separators,
    marks that turn the direction of text and lone surrogates are written as Python writes them.

    >>> printable("dense/kernel"), printable("a\x1b[2J"), printable("a\nb"), printable("\u202egpj.exe")
    ('dense/kernel', 'a\\x1b[2J', 'a\\nb', '\\u202egpj.exe')
    """
    if text.isprintable():
        return text if type(text) is str else str(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printed(lines: Iterable[str]) -> str:
    r"""Lines that hold names of others, as text in which each stays one line.

    >>> printed(["a", "b\n"])
    'a\nb\\n'
    """
    return "\n".join(map(printable, lines))


def printable_lines(text: str) -> str:
    r"""The same for text of several lines, whose line feeds were put there by this package.

    >>> printable_lines("a\tb\nc\x1b")
    'a\\tb\nc\\x1b'
    """
    return printed(text.split("\n"))


def said(error: BaseException, most: int = 500) -> str:
    """What an error of a library says, in one line.

    >>> said(ValueError("a  config\\n\\nwith a name"))
    'a config with a name'
    """
    return printable(" ".join(str(error).split())[:most])
