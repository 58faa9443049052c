"""Output of the commands: colours on a terminal, plain unwrapped lines in a pipe, JSON on demand."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from keras_flax_bridge.errors import printable, printable_lines

_WIDE = 10_000  # columns of a pipe: a path is never broken


class _Clean:
    """A renderable without characters that control a terminal: names in it are untrusted."""

    def __init__(self, thing: Any):
        self._thing = Text(printable_lines(thing)) if isinstance(thing, str) else thing

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Segment]:
        for segment in console.render(self._thing, options):
            clean = segment.text if segment.control else printable_lines(segment.text)
            yield Segment(clean, segment.style, segment.control)


def show(thing: Any) -> None:
    """Prints text of one or more lines, or anything that rich can render."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_Clean(thing))
        return
    plain = Console(file=io.StringIO(), width=_WIDE, color_system=None, highlight=False)
    plain.print(_Clean(thing))
    for line in plain.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())


def say(line: str) -> None:
    """Prints one line; names in it are escaped."""
    show(printable(line))


def show_json(data: Any) -> None:
    """Prints JSON: names are exact, with JSON's own escapes."""
    print(json.dumps(data, indent=1))


def complain(text: str, style: str = "red") -> None:
    """Prints an error or a warning to stderr."""
    text = printable_lines(text)
    Console(stderr=True).print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def tell(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Prints a traceback instead of Python, which would print names unescaped."""
    sys.stderr.write(printable_lines("".join(traceback.format_exception(kind, error, trace))))


_NOISY = ("absl", "asyncio")  # loggers of Orbax, and of coroutines that it leaves behind if a read fails


@contextlib.contextmanager
def calm(debug: bool) -> Iterator[None]:
    """Prints warnings of Keras and of this package as lines, and silences libraries, unless debugging."""
    if debug:
        yield
        return
    loggers = {logger: logger.level for logger in map(logging.getLogger, _NOISY)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="keras")
        warnings.showwarning = _warn  # catch_warnings puts it back
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        hook, sys.unraisablehook = sys.unraisablehook, _pass_over  # for threads of tensorstore
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for logger, level in loggers.items():
                logger.setLevel(level)


def _pass_over(*_: Any) -> None:
    """Threads of tensorstore report to a loop that ended with the first read that failed."""


def _warn(message: Any, *_: Any, **__: Any) -> None:
    complain(str(message), style="yellow")
