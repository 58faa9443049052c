"""What breaks between two versions of the public API, both as `docs/generate/public_api.py` writes them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, OPTIONS, Deprecated
from keras_flax_bridge.tree.words.words_of_versions import DEPRECATED

Entry = Mapping[str, Any]
Rows = Mapping[str, Sequence[Deprecated]]
PROGRAM = "keras-flax-bridge"
BY_PLACE = ("positional-only", "positional or keyword")
WIDER = {  # a kind of parameter that takes every call of the other
    ("positional-only", "positional or keyword"),
    ("keyword-only", "positional or keyword"),
}


def breaks(old: Mapping[str, Any], new: Mapping[str, Any], rows: Rows = DEPRECATED) -> dict[str, str]:
    """What a program for the old API can't do with the new one: the name, and what is wrong with it.

    Additions are none, and neither are other annotations. An argument is ``kfb.restore(like)``. What is
    deprecated works under its old name: it is looked at under its present one.
    """
    found: dict[str, str] = {}
    names = _of_names(list(_under_present_names(old["names"], rows)), new["names"])
    for what, said in [*names, *_of_codes(old["exit codes"], new["exit codes"])]:
        found[what] = f"{found[what]}; {said}" if what in found else said
    return found


def _under_present_names(names: Mapping[str, Entry], rows: Rows) -> Iterator[tuple[str, Entry]]:
    """The entries of an older API, with the names and arguments that its own stand for now."""
    places = [
        (kind, row, door) for kind, those in rows.items() for row in those for door in row.doors.split()
    ]
    moved = {f"{door}.{row.old}": _full(row.new, door) for kind, row, door in places if kind == ATTRIBUTES}
    moved |= {f"{door} {row.old}": f"{door} {row.new}" for _, row, door in places if door == PROGRAM}
    arguments = {(door, row.old): row.new for kind, row, door in places if kind == ARGUMENTS}
    arguments |= {(f"{PROGRAM} {door}", row.old): row.new for kind, row, door in places if kind == OPTIONS}
    for name, entry in names.items():
        present = name
        for old, new in moved.items():
            if name == old or name.startswith(f"{old}."):
                present = f"{new}{name.removeprefix(old)}"
        yield present, _entry_under_present_names(present, entry, moved, arguments)


def _entry_under_present_names(
    name: str, entry: Entry, moved: Mapping[str, str], arguments: Mapping[tuple[str, str], str]
) -> Entry:
    given = entry.get("parameters", ())
    fields = [f"{name}.{field}" for field in entry.get("fields", ())]
    return {
        **entry,
        "parameters": [{**one, "name": arguments.get((name, one["name"]), one["name"])} for one in given],
        "bases": [moved.get(base, base) for base in entry.get("bases", ())],
        "fields": [moved.get(field, field).rpartition(".")[2] for field in fields],
    }


def _full(name: str, door: str) -> str:
    return name if "." in name else f"{door}.{name}"


def _of_names(old: Sequence[tuple[str, Entry]], new: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    owners = {name for name, _ in old} - new.keys()
    for name, entry in old:
        if name in new:
            yield from ((f"{name}{rest}", said) for rest, said in _of(entry, new[name]))
        elif name.rpartition(".")[0] not in owners:  # a class stands for its members
            yield name, "is gone"


def _of_codes(old: Mapping[str, int], new: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for name, code in old.items():
        if new.get(name) != code:
            yield f"exit code {name}", f"was {code}, is {new.get(name)}"


def _of(old: Entry, new: Entry) -> Iterator[tuple[str, str]]:
    if old["kind"] != new["kind"]:
        yield "", f"was {old['kind']}, is {new['kind']}"
        return
    for base in old.get("bases", ()):
        if base not in new["bases"]:
            yield "", f"is no {base} any more"
    fields, present = old.get("fields", []), new.get("fields", [])
    if present[: len(fields)] != fields:
        yield "", f"had the fields {', '.join(fields)}; has {', '.join(present)}"
    yield from _of_parameters(old.get("parameters", []), new.get("parameters", []))


def _of_parameters(old: Sequence[Entry], new: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    before, after = ({one["name"]: one for one in parameters} for parameters in (old, new))
    places = _places(new)
    for name, place in _places(old).items():
        if name in places and places[name] != place:
            yield f"({name})", f"was argument {place + 1} by place, is argument {places[name] + 1}"
    for name, one in before.items():
        if name not in after:
            yield f"({name})", "is gone"
        elif said := "; ".join(_of_parameter(one, after[name])):
            yield f"({name})", said
    for name, one in after.items():
        if name not in before and _is_required(one):
            yield f"({name})", "is new and has no default"


def _of_parameter(old: Entry, new: Entry) -> Iterator[str]:
    if old["kind"] != new["kind"] and (old["kind"], new["kind"]) not in WIDER:
        yield f"was {old['kind']}, is {new['kind']}"
    if not _is_required(old) and _is_required(new):
        yield "has no default any more"
    elif not _is_required(old) and old.get("default") != new.get("default"):
        yield f"had the default {old['default']}, has {new['default']}"
    if "choices" in new and not set(old.get("choices", "*")) <= set(new["choices"]):
        yield f"took {', '.join(old.get('choices', ['any']))}, takes {', '.join(new['choices'])}"


def _is_required(one: Entry) -> bool:
    """Whether every call needs it."""
    return "default" not in one and not one["kind"].startswith("variadic")


def _places(parameters: Sequence[Entry]) -> dict[str, int]:
    by_place = [one["name"] for one in parameters if one["kind"] in BY_PLACE]
    return {name: place for place, name in enumerate(by_place)}
