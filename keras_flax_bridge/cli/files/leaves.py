"""The leaves that a conversion writes: specs first, values when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint.readers import Contents, Held
from keras_flax_bridge.state.report import kind_of
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Flat, Path


class Leaves:
    """The leaves of a source; leaves that it lacks have the initial values of its model.

    Attributes:
        source: the opened file or checkpoint.
        specs: the abstract leaves by path.
        strange: leaves of the source that other formats can't represent, with the reason.
    """

    def __init__(self, source: Contents, initial: Mapping[Path, Any]):
        self.source = source
        self._initial = Held(source.path, initial)
        self.strange = {p: source.lacks[kind_of(p)] for p in source.specs if kind_of(p) in source.lacks}
        self.specs = {
            p: spec for p, spec in source.specs.items() if p not in self.strange
        } | self._initial.specs

    def reading(self) -> AbstractContextManager[None]:
        """Inside, `some` and `parts` may be called often."""
        return self.source.reading()

    def all(self) -> Flat:
        """Every leaf, in the memory of this process."""
        return self.some(self.specs)

    def some(self, paths: Iterable[Path]) -> Flat:
        """Some leaves, in the memory of this process."""
        paths = list(paths)
        found = self.source.some([path for path in paths if path not in self._initial.specs])
        return found | self._initial.some([path for path in paths if path in self._initial.specs])

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """A large leaf in one-dimensional parts; only inside `reading`."""
        return (self._initial if path in self._initial.specs else self.source).parts(path)

    def size(self, paths: Iterable[Path]) -> int:
        """The bytes of some leaves; of a text its characters."""
        paths = list(paths)
        texts = self.some([path for path in paths if isinstance(self.specs[path], str)])
        return sum(len(texts[p]) if p in texts else size_of(self.specs[p]) for p in paths)
