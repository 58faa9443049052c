"""Objects that the config of a layer refers to while Keras rebuilds the layer in the same process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

IN_PROCESS: ContextVar[list[Any] | None] = ContextVar("IN_PROCESS", default=None)


@contextlib.contextmanager
def in_process_configs() -> Iterator[None]:
    """Inside, a config is read back in this process: it may refer to objects that have no config."""
    token = IN_PROCESS.set([])
    try:
        yield
    finally:
        IN_PROCESS.reset(token)
