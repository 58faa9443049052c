"""`WeightMap`: the Flax path of every Keras variable, and conversion of trees in both directions."""

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
    """A pair of the map, or a variable that only one model has.

    Attributes:
        keras: structural keys, joined by `` + ``; ``""`` if only the Flax model has the variable.
        flax: paths, joined by `` + ``; ``""`` if only the Keras model has the variable.
        transforms: convert the Keras values to the Flax values.
    """

    keras: str
    flax: str
    transforms: str = ""


@words.doors()
class WeightMap(metaclass=words.AnsweringType):
    """The counterpart of every Keras variable in a Flax model.

    It converts weights, gradients and optimizer slots in both directions, bit for bit. It prints as a
    table; `save` writes it as JSON, which can be edited; `kfb.restore` accepts it as ``rename=``.

    Args:
        pairs: variables with the same values in both models.
        seeds: structural keys of Keras seeds, which have no counterpart in Flax.
        only_keras: structural keys of variables that only the Keras model has.
        only_flax: paths of variables that only the Flax model has.
        notes: other differences, such as settings that change the outputs.
        linen: whether the Flax model is a tree of Linen variables, whose paths start with a collection.
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
        """Whether every variable has a counterpart and the map has no notes."""
        return not (self.only_keras or self.only_flax or self.notes)

    @property
    def rows(self) -> tuple[MapRow, ...]:
        """One row for each pair, then one for each variable that only one model has."""
        alone = [MapRow(join_path(path), "") for path in self.only_keras]
        return (*self._pairs(), *alone, *(MapRow("", join_path(path)) for path in self.only_flax))

    def _pairs(self) -> list[MapRow]:
        return [
            MapRow(_joined_paths(pair.keras), _joined_paths(pair.flax), ", ".join(map(str, pair.transforms)))
            for pair in self.pairs
        ]

    def table(self) -> str:
        """The map as text: a line for each pair, then variables that only one model has, then notes."""
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
        """Converts Keras values to the paths and shapes of the Flax model.

        Args:
            source: a `keras.Model`, a `TrainState`, or a tree with the structure of its ``params``, such
                as an optimizer slot. By default, the model that the map was made with.

        Returns:
            A nested dict of arrays; if `source` has only some of the variables, with only these.

        Raises:
            StructureMismatchError: if `source` has only some of the variables of a pair.
        """
        flat = keras_values(self.model if source is None else source)
        return nest_paths(dict(self.flax_values(flat)))

    def to_keras(self, target: PyTree, *, like: PyTree = None) -> PyTree:
        """Converts Flax values to the structural keys and shapes of the Keras model.

        Args:
            target: an `nnx.Module`, an `nnx.State`, Linen variables, or a nested dict such as
                gradients or an optimizer slot.
            like: a `keras.Model`, which is updated in place, or a `TrainState`, of which a new one is
                returned. By default, the model that the map was made with; without one, a nested
                dict is returned.

        Returns:
            The model, the state, or a nested dict by structural key.

        Raises:
            StructureMismatchError: listing the variables that are missing or have a different shape;
                nothing is assigned.
        """
        values = dict(self.keras_values(flax_values(target)))
        like = self.model if like is None else like
        if like is None:
            return nest_paths(values)
        return with_values(like, values, set(self.only_keras))

    def flax_values(self, flat: Flat) -> Iterable[tuple[Path, Any]]:
        """Converts Keras leaves by structural key to Flax leaves by path."""
        for pair in self.pairs:
            arrays = whole_values(pair.keras, flat)
            if arrays is not None:
                yield from zip(pair.flax, _transformed(pair, arrays), strict=True)

    def keras_values(self, flat: Flat) -> Iterable[tuple[Path, Any]]:
        """Converts Flax leaves by path to Keras leaves by structural key."""
        for pair in self.pairs:
            arrays = whole_values(pair.flax, flat)
            if arrays is not None:
                abstract = isinstance(arrays[0], jax.ShapeDtypeStruct)
                yield from zip(
                    pair.keras, _transformed(pair, arrays, back=True, abstract=abstract), strict=True
                )

    def flax_specs(self, specs: Flat) -> Flat:
        """Converts the shapes and dtypes of Keras variables to those of the Flax leaves."""
        found: Flat = {}
        for pair in self.pairs:
            arrays = whole_values(pair.keras, specs)
            if arrays is not None:
                found |= dict(zip(pair.flax, _transformed(pair, arrays, abstract=True), strict=True))
        return found

    # interface for `kfb.restore`
    def leaves(self, target: PyTree) -> Flat:
        """The leaves of a Flax model by path."""
        return flax_values(target)

    def put(self, target: Target, values: Flat) -> Target:
        """Sets leaves by path: updates a module in place, and returns a new state or tree otherwise."""
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
        """The map as JSON types.

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
        """Creates a map from the result of `to_json`.

        Args:
            found: the JSON types.
            where: the source of the JSON, for error messages.

        Raises:
            CheckpointError: naming the field that is missing or malformed, or the newer version that wrote
                the map.
        """
        fix = "Write it again with wmap.save(path)."
        stored = records.from_json(StoredMap, found, where, fix=fix, of="a map with ")
        return cls(**{name: getattr(stored, name) for name in _STORED})


_STORED = [one.name for one in fields(StoredMap)]


def _transformed(pair: Pair, arrays: list[Any], *, back: bool = False, abstract: bool = False) -> list[Any]:
    """Applies the transforms of a pair to the leaves on one side.

    Raises:
        StructureMismatchError: naming the pair, if the leaves have other shapes than the map was made for.
    """
    try:
        if abstract:
            return shapes(pair.transforms, arrays, back=back)
        return (inverse if back else forward)(pair.transforms, arrays)
    except (TypeError, ValueError, IndexError) as error:
        raise StructureMismatchError(
            f"the map of {_joined_paths(pair.keras)}",
            got=f"leaves of {', '.join(map(spec_text, arrays))} for {', '.join(map(str, pair.transforms))}",
            expected="leaves with the shapes that the map was made for",
            fix="The map was made for a different model: make it again with kfb.migrate.match.",
        ) from error


def _joined_paths(paths: Sequence[Path]) -> str:
    return " + ".join(map(join_path, paths))
