"""The interface of all readers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.slices import PART, flat_pieces, slices
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.state.report import METRIC, STEP, StateReport, rows
from keras_flax_bridge.tree.leaves import on_disk
from keras_flax_bridge.tree.paths import Flat, Path

# kinds of leaves that Keras files don't contain, and the reason
NOT_IN_KERAS_FILES = {
    SEED: "Keras's files hold no seeds",
    METRIC: "Keras's files hold no metrics",
    STEP: "Keras counts steps in its optimizer",
}


class Contents:
    """The contents of a file or folder.

    Attributes:
        path: the file, or the folder of the checkpoint.
        kind: a description of its format.
        specs: every leaf, abstract, by its name.
        metadata: everything stored beside the leaves, such as the config of the model.
        lacks: kinds of leaves that are not there, or mean nothing elsewhere, and why.
        note: what else is to be said of it.
        own_names: whether names are the writer's own, which `rename` of a restore takes as they are.
        unnamed: why the names are those in the file, and not structural keys; ``""`` where they are.
    """

    note = ""
    own_names = False
    lacks: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        path: FilePath,
        kind: str,
        specs: Flat,
        metadata: Metadata | None = None,
        unnamed: str = "",
    ):
        self.path = path
        self.kind = kind
        self.specs = specs
        self.metadata = metadata or Metadata()
        self.unnamed = unnamed

    @property
    def config(self) -> Any:
        """The config of the model, or of several by name; None if there is none."""
        return self.metadata.model

    # interface for restore

    def load(self, targets: Mapping[Path, Any]) -> Flat:
        """The values of some leaves, with the shardings of their targets.

        Raises:
            CorruptCheckpointError: naming the leaves that can't be read.
        """
        raise NotImplementedError

    def require_stored(self) -> None:
        """Checks what arrays declare against the bytes on disk, for a reader without arrays of its own.

        Raises:
            CheckpointError: if they declare far more.
        """

    def require_whole(self, values: Flat) -> None:
        """Compares values with checksums that were not compared while reading.

        Raises:
            CorruptCheckpointError: naming every leaf that differs.
        """

    def load_data(self, iterator: Any) -> None:
        """Sets a data iterator to the position that was stored.

        Raises:
            CheckpointError: if none was stored.
        """
        raise CheckpointError(
            str(self.path),
            got=f"a {self.kind}",
            expected="a checkpoint",
            fix="Restore without data=.",
        )

    def assets(self) -> Assets:
        """The files of layers, such as vocabularies, that are stored beside the leaves.

        Raises:
            CorruptCheckpointError: if they are damaged.
        """
        return NO_ASSETS

    def asset_sizes(self) -> dict[str, int]:
        """The size of each of these files by the name that reports show; nothing is read."""
        return {}

    # interface for the command line

    def values(self) -> Flat:
        """Every leaf, in the memory of this process."""
        return self.some(self.specs)

    def some(self, paths: Iterable[Path]) -> Flat:
        """Some leaves, in the memory of this process."""
        raise NotImplementedError

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """A large leaf in one-dimensional parts, in C order."""
        raise NotImplementedError

    def packed(self) -> Container[Path]:
        """Leaves that are read as one."""
        return ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context for several calls of `some` and `parts`, which share their setup."""
        yield

    def initial(self) -> Flat:
        """Leaves that `values` lacks, as the model that is stored starts them."""
        return {}

    def shardings(self) -> dict[Path, str]:
        """Descriptions of the shardings with which leaves were saved, if they are known."""
        return {}

    def report(self) -> StateReport:
        """A report of the leaves, without their values."""
        named = f"the names are those in the file: {self.unnamed}" if self.unnamed else ""
        sizes = [f"{name} ({size:,} bytes)" for name, size in self.asset_sizes().items()]
        files = f"files of layers: {', '.join(sizes)}" if sizes else ""
        notes = tuple(note for note in (named, self.note, files) if note)
        return StateReport(f"{self.path}: {self.kind}", rows(self.specs, self.shardings()), notes)


class Held(Contents):
    """Leaves that are in memory already."""

    def __init__(self, path: FilePath, flat: Mapping[Path, Any], kind: str = "leaves in memory"):
        super().__init__(path, kind, dict(flat))

    def some(self, paths: Iterable[Path]) -> Flat:
        """Some leaves, as numpy."""
        return {path: as_numpy(self.specs[path]) for path in paths}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """A large leaf in one-dimensional parts."""
        leaf = as_numpy(self.specs[path])
        return flat_pieces(leaf[part] for part in slices(leaf.shape, PART // leaf.dtype.itemsize))


def as_numpy(leaf: Any) -> Any:
    """An array as numpy array in the memory of this process; other values unchanged."""
    return np.asarray(on_disk(leaf)) if hasattr(leaf, "dtype") else leaf
