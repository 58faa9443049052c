"""Keras's own files."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.checkpoint import guards, keras_files, model_configs, optimizer_extras
from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.readers import keras_arrays
from keras_flax_bridge.checkpoint.readers.contents import NOT_IN_KERAS_FILES, Contents, as_numpy
from keras_flax_bridge.checkpoint.slices import GROUP, flat_pieces
from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.state.report import SLOT, kind_of
from keras_flax_bridge.tree.diff import same_spec
from keras_flax_bridge.tree.paths import Flat, Path


class _File(Contents):
    """A file whose arrays are read by the names that they have in it."""

    def asset_sizes(self) -> dict[str, int]:
        """The size of each file of a layer in a `.keras` file."""
        return guards.asset_sizes(self.path) if guards.kind(self.path) == ".keras" else {}

    _weights: guards.Weights | None = None
    _places: Mapping[Path, str]  # the name in the file of each leaf that is read from it

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Opens and checks the file once."""
        with guards.weights(self.path, values=True) as weights:
            self._weights = weights
            try:
                yield
            finally:
                self._weights = None

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        if self._weights is None:
            with self.reading():
                return self.some(paths)
        return {path: self._weights.read(self._places[path]) for path in paths}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        assert self._weights is not None, "only inside reading()"
        return flat_pieces(self._weights.pieces(self._places[path], GROUP))


class KerasArrays(_File):
    """A file by the paths of the arrays in it."""

    def __init__(self, path: FilePath, unnamed: str):
        super().__init__(path, kind(path), keras_arrays.datasets(path), unnamed=unnamed)
        self._places = {path: "/".join(path) for path in self.specs}


class KerasModel(_File):
    """A file by structural keys.

    Args:
        path: the file.
        specs: the abstract leaves of its model.
        names: the names in the file, as far as they are known.
        model: the model with the values of the file; None loads it on demand.
    """

    def __init__(self, path: FilePath, specs: Flat, names: Mapping[Path, str], model: Any = None):
        if model is None:
            config = {**(guards.config(path) or {}), **optimizer_extras.read(path)}
        else:
            config = model_configs.of_model(model)
        arrays = keras_arrays.datasets(path)
        stored = any(name[0] == "optimizer" for name in arrays)
        super().__init__(path, kind(path), _written(specs, stored), Metadata(model=config))
        slots = any(kind_of(name) == SLOT for name in self.specs)
        if stored and not slots:
            self.note = "it holds slots of an optimizer, and the model isn't compiled"
        self.lacks = NOT_IN_KERAS_FILES if slots else {**NOT_IN_KERAS_FILES, SLOT: "it holds no slots"}
        self._places = names if _are_these(self.specs, names, arrays) else {}
        self._initial = None if model is None else self._unstored(keras_files.KerasFile(path, model).specs)
        self._model = None if self._places else model  # else nothing of it is needed any more

    def some(self, paths: Iterable[Path]) -> Flat:
        """The values of some leaves, as numpy."""
        if self._places:
            return super().some(paths)
        paths, file = list(paths), self._loaded()  # only Keras can read user-defined layers
        file.require(paths)
        return {path: as_numpy(file.specs[path]) for path in paths}

    def parts(self, path: Path) -> Iterator[np.ndarray]:
        """One large leaf in one-dimensional parts."""
        return super().parts(path) if self._places else flat_pieces(self.some([path]).values())

    def initial(self) -> Flat:
        """The values that a new state has where this file holds none."""
        if self._initial is not None:
            return self._initial
        self._model = None  # it can be loaded again, and would hold all weights
        return self._unstored(keras_files.KerasFile(self.path).specs)

    def _unstored(self, state: Flat) -> Flat:
        """The parts of a state that the file does not contain."""
        return {path: as_numpy(leaf) for path, leaf in state.items() if path not in self.specs}

    def _loaded(self) -> keras_files.KerasFile:
        file = keras_files.KerasFile(self.path, self._model)
        self._model = file.model if file.is_whole else None
        return file


def _are_these(specs: Flat, names: Mapping[Path, str], arrays: Flat) -> bool:
    """Whether the file contains each leaf under its name, with the shape and dtype of the model."""
    stored = {"/".join(name): leaf for name, leaf in arrays.items()}
    return all(
        names.get(path) in stored and same_spec(stored[names[path]], leaf) for path, leaf in specs.items()
    )


def kind(path: FilePath) -> str:
    """The kind of a file, for messages."""
    return "Keras's weights file" if path.name.endswith(".h5") else "Keras file"


def _written(specs: Flat, slots: bool) -> Flat:
    """The leaves of a model that its file contains: weights, and slots if there are any."""
    kept = {name: leaf for name, leaf in specs.items() if kind_of(name) not in NOT_IN_KERAS_FILES}
    return kept if slots else {name: leaf for name, leaf in kept.items() if kind_of(name) != SLOT}


def in_keras_file(path: FilePath) -> Contents:
    """A `.keras` file, by structural keys where its model can be built here."""
    config = guards.config(path)
    try:
        return KerasModel(path, *keras_arrays.abstract(path, config))
    except BridgeError as error:  # its classes aren't known here, or it holds code
        return KerasArrays(path, f"its model can't be built here ({' '.join(str(error.got).split())})")


def in_weights_file(path: FilePath, model: Any) -> Contents:
    """A `.weights.h5` file: by structural keys, if the model that it is of is given."""
    if model is None:
        return KerasArrays(path, "a weights file doesn't identify its model")
    gc.collect()  # what loading the model left behind
    give_back()
    keras_files.read_weights(path, model)
    state = keras_files.KerasFile(path, model).specs
    specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in state.items()}
    return KerasModel(path, specs, keras_arrays.names(model), model)
