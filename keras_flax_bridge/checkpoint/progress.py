"""Progress of long operations on a terminal, in one display; silent in a pipe or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from keras_flax_bridge.errors import printable

_shown: ContextVar[Any] = ContextVar("_shown", default=None)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Shows an operation and its duration; a nested one as a line below."""
    with contextlib.ExitStack() as stack:
        display = _shown.get() or _begun(stack)
        stack.callback(display.remove_task, display.add_task(printable(text), total=None))
        yield


def _begun(stack: contextlib.ExitStack) -> Any:
    from rich import progress  # on first use: keeps the import fast
    from rich.console import Console

    description = progress.TextColumn("{task.description}", markup=False)
    columns = progress.SpinnerColumn(), description, progress.TimeElapsedColumn()
    console = Console(stderr=True)
    display = progress.Progress(*columns, console=console, transient=True)
    if console.is_terminal:  # a display that is not started shows nothing
        stack.enter_context(display)
    stack.callback(_shown.reset, _shown.set(display))
    return display
