"""A pair of a weight map, and the schema of the JSON of the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras_flax_bridge.keras_internals import PARAM
from keras_flax_bridge.migrate import transforms
from keras_flax_bridge.migrate.transforms import Transform, from_json, to_json
from keras_flax_bridge.tree.paths import Path, join_path, split_path
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.records import Record, field
from keras_flax_bridge.tree.untrusted.schema import Malformed


class Pair(NamedTuple):
    """Variables with the same values in both models.

    Attributes:
        keras: structural keys of the Keras variables; more than one if Flax concatenates them.
        flax: paths in the Flax model; more than one if Flax splits the variable.
        transforms: convert the Keras arrays to the Flax arrays.
        kind: the kind of the Keras variable: ``param``, ``frozen``, ``batch_stat`` or ``other``.
    """

    keras: tuple[Path, ...]
    flax: tuple[Path, ...]
    transforms: tuple[Transform, ...] = ()
    kind: str = PARAM


_PAIR = schema.record(
    {
        "keras": schema.list_of(schema.name),
        "flax": schema.list_of(schema.name),
        "transforms": schema.list_of(transforms.check),
        "kind": schema.text,
    },
    required=Pair._fields,
)


def _pair(value: Any, field: str) -> None:
    """Checks that the transforms of a pair produce as many arrays as it has Flax paths."""
    _PAIR(value, field)
    steps = tuple(map(from_json, value["transforms"]))
    made = transforms.count_after(steps, len(value["keras"]))
    if not value["keras"] or made != len(value["flax"]):
        sides = f"{len(value['keras'])} Keras and {len(value['flax'])} Flax paths"
        raise Malformed(field, sides, "as many as the transforms take and return")


def _read_pair(value: Any) -> Pair:
    keras, flax = _split(value["keras"]), _split(value["flax"])
    return Pair(keras, flax, tuple(map(from_json, value["transforms"])), value["kind"])


def _write_pair(pair: Pair) -> dict[str, Any]:
    keras, flax = _joined(pair.keras), _joined(pair.flax)
    return {
        "keras": keras,
        "flax": flax,
        "transforms": list(map(to_json, pair.transforms)),
        "kind": pair.kind,
    }


def _split(names: Sequence[str]) -> tuple[Path, ...]:
    return tuple(map(split_path, names))


def _joined(paths: Sequence[Path]) -> list[str]:
    return list(map(join_path, paths))


def _read_pairs(values: Sequence[Any]) -> tuple[Pair, ...]:
    return tuple(map(_read_pair, values))


def _write_pairs(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return list(map(_write_pair, pairs))


def _paths() -> Any:
    return field(schema.list_of(schema.name), read=_split, write=_joined)


@dataclass(frozen=True, kw_only=True)
class StoredMap(Record):
    """The stored fields of a `WeightMap`."""

    pairs: tuple[Pair, ...] = field(schema.list_of(_pair), read=_read_pairs, write=_write_pairs)
    seeds: tuple[Path, ...] = _paths()
    only_keras: tuple[Path, ...] = _paths()
    only_flax: tuple[Path, ...] = _paths()
    notes: tuple[str, ...] = field(schema.list_of(schema.text), read=tuple, write=list)
    linen: bool = field(schema.flag)
