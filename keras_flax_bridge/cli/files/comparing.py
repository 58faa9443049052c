"""Checks that a written file reads back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint.groups import groups, is_large
from keras_flax_bridge.checkpoint.readers import Contents
from keras_flax_bridge.checkpoint.slices import PART, together
from keras_flax_bridge.cli.files.leaves import Leaves
from keras_flax_bridge.tree.diff import same_spec
from keras_flax_bridge.tree.paths import Path


def unlike(back: Contents, names: Mapping[Path, Path], leaves: Contents | Leaves) -> Iterator[Path]:
    """The leaves that came back otherwise; a few are read at a time."""
    there = {name: leaf for name, leaf in back.specs.items() if name in names}
    with back.reading(), leaves.reading():
        for group in groups(there, back.packed()):
            if is_large(there[group[0]]):
                yield from (name for name in group if not _same_parts(back, name, leaves, names[name]))
                continue
            values, wanted = back.some(group), leaves.some([names[name] for name in group])
            yield from (name for name in group if not _equal(values[name], wanted[names[name]]))


def _same_parts(back: Contents, name: Path, leaves: Contents | Leaves, path: Path) -> bool:
    if not same_spec(back.specs[name], leaves.specs[path]):
        return False
    pairs = together(back.parts(name), leaves.parts(path), PART)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def _equal(a: Any, b: Any) -> bool:
    if not hasattr(b, "dtype"):
        return np.shape(a) == () and bool(a == b)
    return same_spec(a, b) and np.asarray(a).tobytes() == np.asarray(b).tobytes()
