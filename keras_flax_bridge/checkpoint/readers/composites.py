"""Checkpoints in which other code stored several trees, each as an item of its own."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.readers.checkpoints import Checkpoint
from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.tree.paths import Flat, Path


class Composite(Contents):
    """A folder; the name of an item is the first name of its leaves.

    Args:
        path: the folder.
        items: the names of the trees in it.
    """

    def __init__(self, path: FilePath, items: Iterable[str]):
        self._items = {item: Checkpoint(orbax_io.Stored(path / item)) for item in items}
        specs = {(item, *name): leaf for item, one in self._items.items() for name, leaf in one.specs.items()}
        super().__init__(path, "checkpoint of several trees", specs)

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        found: Flat = {}
        for item, own in self._by_item(targets).items():
            values = self._items[item].load({name: targets[(item, *name)] for name in own})
            found |= {(item, *name): value for name, value in values.items()}
        return found

    def _by_item(self, paths: Iterable[Path]) -> dict[str, list[Path]]:
        """The names of leaves in each item, in the order of the paths."""
        found: dict[str, list[Path]] = {}
        for item, *name in paths:
            found.setdefault(item, []).append(tuple(name))
        return found

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk."""
        for one in self._items.values():
            one.require_stored()

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        groups = self._by_item(paths).items()
        return {(i, *name): leaf for i, own in groups for name, leaf in self._items[i].some(own).items()}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        return self._items[path[0]].parts(path[1:])

    def packed(self) -> Container[Path]:
        """The leaves that are packed in one array: none, as others pack nothing."""
        return ()

    def shardings(self) -> dict[Path, str]:
        """Descriptions of the shardings with which leaves were saved."""
        return {(i, *name): said for i, one in self._items.items() for name, said in one.shardings().items()}
