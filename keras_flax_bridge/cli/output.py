"""What the commands print: colours on a terminal, plain whole lines in a pipe, JSON on demand."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

_WIDE = 10_000  # columns of a pipe: a path is never broken


def show(thing: Any) -> None:
    """Prints a text, or what rich knows to draw."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(thing, markup=False)
        return
    plain = Console(file=io.StringIO(), width=_WIDE, color_system=None, highlight=False)
    plain.print(thing, markup=False)
    for line in plain.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())


def show_json(data: Any) -> None:
    """Prints what machines read."""
    print(json.dumps(data, indent=1))


def complain(text: str, style: str = "red") -> None:
    """Prints a line to stderr."""
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


_NOISY = ("absl", "asyncio")  # Orbax logs here, and what it leaves behind where a read fails


@contextlib.contextmanager
def calm(debug: bool) -> Iterator[None]:
    """Keras's warnings and ours as lines, and nothing of what libraries log, unless that is looked for."""
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
