"""One pair of a weight map, and the schema of its JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_flax_bridge.keras_internals import PARAM
from keras_flax_bridge.migrate import transforms
from keras_flax_bridge.migrate.transforms import Transform, from_json
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.schema import Malformed

MAP_FORMAT = 1


class Pair(NamedTuple):
    """Variables with the same values in both models.

    Attributes:
        keras: structural keys of the Keras variables; several where Flax has them joined.
        flax: paths in the Flax model; several where Flax has them apart.
        transforms: what turns the first into the second.
        kind: what the variable is to Keras: ``param``, ``frozen``, ``batch_stat`` or ``other``.
    """

    keras: tuple[Path, ...]
    flax: tuple[Path, ...]
    transforms: tuple[Transform, ...] = ()
    kind: str = PARAM


PATH_LISTS = ("seeds", "only_keras", "only_flax")
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
        raise Malformed(field, sides, "as many as the transforms take and make")


_FIELDS: dict[str, schema.Check] = {
    "format": schema.choice_of(MAP_FORMAT),
    "pairs": schema.list_of(_pair),
    **dict.fromkeys(PATH_LISTS, schema.list_of(schema.name)),
    "notes": schema.list_of(schema.text),
    "linen": schema.flag,
}
check_map = schema.record(_FIELDS, required=[field for field in _FIELDS if field != "format"])
