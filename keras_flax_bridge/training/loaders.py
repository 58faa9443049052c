"""How the data of a run looks from outside, by which a position is known to be one in the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.errors import ArgumentError
from keras_flax_bridge.keras_internals import loaders as of_keras

_MANY = 3  # sizes: then the loader makes batches of any size
_AS_BEFORE = "as in the run that is resumed"
_FIELDS = {"kind": "loader", "batch_size": "batch size", "batches": "number of batches"}


def rows(batch: Any) -> int | None:
    """How many rows a batch has, by its first array."""
    return next((np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)), None)


def _other(where: str, got: str, expected: str) -> ArgumentError:
    return ArgumentError(
        where,
        got=got,
        expected=f"{expected}, {_AS_BEFORE}",
        fix='Pass the same data, resume="restart_epoch" to begin the epoch again with this data, or another '
        "folder for another run.",
    )


# --- the data of `fit`, of which Keras knows


def described(loader: of_keras.Loader) -> dict[str, Any]:
    """What a position keeps of a loader."""
    return {name: getattr(loader, name) for name in _FIELDS}


def require_same(loader: of_keras.Loader, stored: Mapping[str, Any] | None, where: Path) -> None:
    """Checks a loader against that of the run that is resumed.

    Raises:
        ArgumentError: if it is of another kind, batch size or number of batches; names both.
    """
    for name, value in described(loader).items():
        before = (stored or {}).get(name)
        if None not in (before, value) and value != before:
            raise _other(f"{where}, {_FIELDS[name]}", repr(value), repr(before))


def require_rows(found: int | None, stored: int | None, where: Path) -> None:
    """Checks the first batch against that of the run that is resumed.

    Raises:
        ArgumentError: if it has another number of rows; names both.
    """
    if stored is not None and found != stored:
        raise _other(f"{where}, batch size", repr(found), repr(stored))


# --- the data of `train`, of which its batches tell


class Loader:
    """The kind of a loader, its number of batches and the sizes of its batches.

    Args:
        kind: of the data, in words.
        batches: of an epoch, if that is known.

    Attributes:
        sizes: the first axes of the batches that came, as far as they are few.
    """

    def __init__(self, kind: str, batches: int | None):
        self.kind, self.batches = kind, batches
        self.sizes: set[int] = set()
        self._before: set[int] | None = None  # of the run that is resumed, while they tell something

    @classmethod
    def of(cls, data: Any, batches: int | None) -> Loader:
        """The loader that some data is."""
        return cls("sequence" if isinstance(data, (list, tuple)) else type(data).__qualname__, batches)

    def content(self) -> dict[str, Any]:
        """It in JSON types."""
        sizes = sorted(self.sizes | (self._before or set()))
        return {
            "kind": self.kind,
            "batches": self.batches,
            "sizes": sizes[:_MANY],
            "processes": jax.process_count(),
        }

    def require_same(self, found: dict[str, Any] | None) -> None:
        """Checks the loader of a stored position against this one.

        Raises:
            ArgumentError: naming both.
        """
        if found is None:
            return
        if found["kind"] != self.kind:
            raise _other("data", f"data of kind {self.kind!r}", repr(found["kind"]))
        if self.batches != found["batches"]:
            raise _other("data", f"{_count(self.batches)} batches in an epoch", _count(found["batches"]))
        if found["processes"] == jax.process_count() and 0 < len(found["sizes"]) < _MANY:
            self._before = set(found["sizes"])

    def check(self, batch: Any, rest: Iterator[Any]) -> None:
        """Takes note of a batch, and checks the first one after a resume.

        Args:
            batch: the batch.
            rest: what comes after it: nothing may, where a batch is smaller than those before.

        Raises:
            ArgumentError: if it has another size than those of the run that is resumed.
        """
        known, self._before = self._before, None
        if len(self.sizes) >= _MANY:
            return
        size = rows(batch)
        if size is None:
            return
        if known and size not in known and (size > max(known) or next(rest, rest) is not rest):
            raise _other_rows(size, known)
        self.sizes |= {size, *(known or ())}

    def require_known(self, batch: Any) -> None:
        """Checks a batch that was trained on before the resume.

        Raises:
            ArgumentError: if no batch of that run was of its size.
        """
        size = rows(batch)
        if self._before and size is not None and size not in self._before:
            raise _other_rows(size, self._before)


def _count(batches: int | None) -> str:
    return "an unknown number of" if batches is None else str(batches)


def _other_rows(size: int, known: set[int]) -> ArgumentError:
    return _other("data", f"a batch of {size} rows", f"{' or '.join(map(str, sorted(known)))} rows")
