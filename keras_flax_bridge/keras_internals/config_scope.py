"""Modules that are made anew out of a config, known while Keras builds them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

LIVING: ContextVar[list[Any] | None] = ContextVar("_LIVING", default=None)


@contextlib.contextmanager
def living() -> Iterator[None]:
    """Inside, configs are read again in this process: they may hold modules as they are."""
    token = LIVING.set([])
    try:
        yield
    finally:
        LIVING.reset(token)
