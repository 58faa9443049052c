"""`WeightMap`: where every Keras variable lies in a Flax model, as data that moves trees both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import keras
from flax import nnx

from keras_flax_bridge.errors import CheckpointError, StructureMismatchError, printed
from keras_flax_bridge.migrate.map_schema import Pair, StoredMap
from keras_flax_bridge.migrate.map_values import (
    flax_values,
    keras_values,
    placed_as,
    whole_values,
    with_values,
)
from keras_flax_bridge.migrate.transforms import forward, inverse, shapes
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.paths import Flat, Path, fill_tree, join_path, nest_paths
from keras_flax_bridge.tree.reports import Table, table_of
from keras_flax_bridge.tree.types import PathLike, PyTree, Target
from keras_flax_bridge.tree.untrusted import records, texts


class MapRow(NamedTuple):
    """A pair of the map, or a variable that only one of the models has.

    Attributes:
        keras: structural keys, joined by `` + ``; ``""`` where the Keras model lacks it.
        flax: paths, joined alike; ``""`` where the Flax model lacks it.
        transforms: what turns the Keras values into the Flax values.
    """

    keras: str
    flax: str
    transforms: str = ""


@words.doors()
class WeightMap(metaclass=words.AnsweringType):
    """The counterpart of every Keras variable in a Flax model.

    It moves weights, gradients and optimizer slots, in both directions and bit for bit. Print it
    for a table; `save` writes JSON to keep and edit; `kfb.restore` takes it as ``rename=``.

    Args:
        pairs: the variables that belong together.
        seeds: structural keys of Keras's seeds, which have no counterpart in Flax.
        only_keras: keys of Keras variables that the Flax model lacks.
        only_flax: paths that the Keras model lacks.
        notes: what else differs, such as settings that change the outputs.
        linen: whether the Flax model is of Linen variables, whose paths start with a collection.
        model: the Keras model whose weights `to_flax` takes by default.

    Example:
        >>> import keras
        >>> from keras_flax_bridge import migrate
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> print(migrate.to_nnx(model).weight_map.table())
        dense/kernel  ->  dense/kernel
        dense/bias    ->  dense/bias
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        *,
        seeds: Iterable[Path] = (),
        only_keras: Iterable[Path] = (),
        only_flax: Iterable[Path] = (),
        notes: Iterable[str] = (),
        linen: bool = False,
        model: keras.Model | None = None,
    ):
        self.pairs = tuple(pairs)
        self.seeds = tuple(seeds)
        self.only_keras = tuple(only_keras)
        self.only_flax = tuple(only_flax)
        self.notes = tuple(notes)
        self.linen = linen
        self.model = model

    def __repr__(self) -> str:
        return f"{self._head()}\n{self.table()}"

    def _head(self) -> str:
        return f"WeightMap of {len(self.pairs)} pairs"

    @property
    def ok(self) -> bool:
        """Whether every variable has a counterpart, and the map has no note."""
        return not (self.only_keras or self.only_flax or self.notes)

    @property
    def rows(self) -> tuple[MapRow, ...]:
        """One row for each pair, then one for each variable that only one of the models has."""
        alone = [MapRow(join_path(path), "") for path in self.only_keras]
        return (*self._pairs(), *alone, *(MapRow("", join_path(path)) for path in self.only_flax))

    def _pairs(self) -> list[MapRow]:
        return [
            MapRow(_listed(pair.keras), _listed(pair.flax), ", ".join(map(str, pair.transforms)))
            for pair in self.pairs
        ]

    def table(self) -> str:
        """One line for every pair, then what one side lacks, then what else differs."""
        rows = self._pairs()
        width = max((len(row.keras) for row in rows), default=0)
        lines = [f"{a:<{width}}  ->  {b}{f'  ({how})' if how else ''}" for a, b, how in rows]
        lines += [f"only in Keras: {join_path(path)}" for path in self.only_keras]
        lines += [f"only in Flax: {join_path(path)}" for path in self.only_flax]
        return printed([*lines, *(f"note: {note}" for note in self.notes)])

    def __rich__(self) -> Table:
        return table_of(self._head(), MapRow._fields, self.rows, [f"note: {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        return self.__rich__().to_html()

    def to_flax(self, source: PyTree = None) -> dict[str, Any]:
        """Keras values under the paths and in the shapes of the Flax model.

        Args:
            source: None for the model that the map was made with; a `keras.Model`; a `TrainState`;
                or any tree that is shaped like its ``params``, such as an optimizer slot.

        Returns:
            A nested dict of arrays; for a tree that holds part of the variables, that part.

        Raises:
            StructureMismatchError: naming the variables that are missing from a pair.
        """
        flat = keras_values(self.model if source is None else source)
        return nest_paths(dict(self.flax_values(flat)))

    def to_keras(self, target: PyTree, *, like: PyTree = None) -> PyTree:
        """Flax values under the keys and in the shapes of the Keras model.

        Args:
            target: an `nnx.Module`, an `nnx.State`, Linen variables, or a nested dict such as
                gradients or an optimizer slot.
            like: a `keras.Model`, which is filled in place; a `TrainState`, of which a new one is
                made; None for the model that the map was made with, or for a nested dict.

        Returns:
            The model, the state, or a nested dict by structural keys.

        Raises:
            StructureMismatchError: listing variables that are missing or of another shape; nothing
                was assigned.
        """
        values = dict(self.keras_values(flax_values(target)))
        like = self.model if like is None else like
        if like is None:
            return nest_paths(values)
        return with_values(like, values, set(self.only_keras))

    def flax_values(self, flat: Flat) -> Iterable[tuple[Path, Any]]:
        """Flax leaves out of Keras leaves by structural key."""
        for pair in self.pairs:
            arrays = whole_values(pair.keras, flat)
            if arrays is not None:
                yield from zip(pair.flax, _moved(pair, arrays), strict=True)

    def keras_values(self, flat: Flat) -> Iterable[tuple[Path, Any]]:
        """Keras leaves by structural key out of Flax leaves."""
        for pair in self.pairs:
            arrays = whole_values(pair.flax, flat)
            if arrays is not None:
                abstract = isinstance(arrays[0], jax.ShapeDtypeStruct)
                yield from zip(pair.keras, _moved(pair, arrays, back=True, abstract=abstract), strict=True)

    def flax_specs(self, specs: Flat) -> Flat:
        """Shapes and dtypes of the Flax leaves out of those of the Keras variables."""
        found: Flat = {}
        for pair in self.pairs:
            arrays = whole_values(pair.keras, specs)
            if arrays is not None:
                found |= dict(zip(pair.flax, _moved(pair, arrays, abstract=True), strict=True))
        return found

    # what `kfb.restore` asks for
    def leaves(self, target: PyTree) -> Flat:
        """Every leaf of a Flax model by path."""
        return flax_values(target)

    def put(self, target: Target, values: Flat) -> Target:
        """Puts leaves in their places: a module is updated, of anything else a new one is made."""
        if not isinstance(target, nnx.Module):
            return fill_tree(target, values)
        for path, leaf in nnx.to_flat_state(nnx.state(target)):
            name = tuple(map(str, path))
            if name in values:
                leaf.set_value(placed_as(values[name], leaf.get_value()))
        return target

    # files
    def save(self, path: PathLike) -> None:
        """Writes the map as JSON.

        Args:
            path: the file.

        Raises:
            OSError: if it can't be written.
        """
        FilePath(path).write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        """The map as plain JSON types.

        Raises:
            TypeError: if a transform has a setting that JSON can't represent.
        """
        return records.to_json(StoredMap(**{name: getattr(self, name) for name in _STORED}))

    @classmethod
    def load(cls, path: PathLike) -> WeightMap:
        """Reads a map that `save` wrote.

        Args:
            path: the file.

        Returns:
            The map, without a model.

        Raises:
            CheckpointError: if the file is not a weight map.

        Example:
            >>> import tempfile
            >>> file = tempfile.mkdtemp() + "/map.json"
            >>> WeightMap([Pair((("a", "kernel"),), (("b", "w"),))]).save(file)
            >>> print(WeightMap.load(file).table())
            a/kernel  ->  b/w
        """
        file = FilePath(path)
        return cls.from_json(texts.read_json(file, CheckpointError), str(file))

    @classmethod
    def from_json(cls, found: PyTree, where: str = "the map") -> WeightMap:
        """The map that `to_json` described.

        Args:
            found: JSON types.
            where: where they come from, for errors.

        Raises:
            CheckpointError: naming the field that is missing or malformed, or the newer version that wrote
                the map.
        """
        fix = "Write it again with wmap.save(path)."
        stored = records.from_json(StoredMap, found, where, fix=fix, of="a map with ")
        return cls(**{name: getattr(stored, name) for name in _STORED})


_STORED = [one.name for one in fields(StoredMap)]


def _moved(pair: Pair, arrays: list[Any], *, back: bool = False, abstract: bool = False) -> list[Any]:
    """What the transforms of a pair make of the leaves of one side.

    Raises:
        StructureMismatchError: naming the pair, if the leaves do not have the shapes that it was made for.
    """
    try:
        if abstract:
            return shapes(pair.transforms, arrays, back=back)
        return (inverse if back else forward)(pair.transforms, arrays)
    except (TypeError, ValueError, IndexError) as error:
        raise StructureMismatchError(
            f"the map of {_listed(pair.keras)}",
            got=f"leaves of {', '.join(map(spec_text, arrays))} for {', '.join(map(str, pair.transforms))}",
            expected="leaves of the shapes that the map was made for",
            fix="The map was made for another model: write it again with wmap.save(path).",
        ) from error


def _listed(paths: Sequence[Path]) -> str:
    return " + ".join(map(join_path, paths))
