"""What a file or folder holds, under other names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from keras_flax_bridge.checkpoint.readers.contents import Contents
from keras_flax_bridge.tree.paths import Flat, Path

NONE: Mapping[Path, Any] = MappingProxyType({})


class Renamed(Contents):
    """The contents of another reader.

    Args:
        source: the reader.
        places: the name of each leaf there, by the new name.
        starts: leaves that are not there, with the values that they have then.
    """

    def __init__(self, source: Contents, places: Mapping[Path, Path], starts: Mapping[Path, Any] = NONE):
        specs = {name: source.specs[place] for name, place in places.items()}
        started = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in starts.items()}
        super().__init__(source.path, source.kind, {**specs, **started}, source.metadata)
        self.own_names = source.own_names
        self._source, self._places, self._starts = source, dict(places), dict(starts)

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets."""
        there = {name: self._places[name] for name in targets if name in self._places}
        found = self._source.load({place: targets[name] for name, place in there.items()})
        starts = {name: self._starts[name] for name in targets if name not in there}
        placed = {n: jax.device_put(v, getattr(targets[n], "sharding", None)) for n, v in starts.items()}
        return {**{name: found[place] for name, place in there.items()}, **placed}

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk."""
        self._source.require_stored()

    def require_whole(self, values: Flat) -> None:
        """Compares values with the stored checksums."""
        self._source.require_whole({self._places[n]: v for n, v in values.items() if n in self._places})

    def load_data(self, iterator: Any) -> None:
        """Sets a data iterator to the position that was stored."""
        self._source.load_data(iterator)
