"""What breaks between two versions of the public API, both as `docs/generate/public_api.py` writes them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
BY_PLACE = ("positional-only", "positional or keyword")
WIDER = {  # a kind of parameter that takes every call of the other
    ("positional-only", "positional or keyword"),
    ("keyword-only", "positional or keyword"),
}


def breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """What a program for the old API can't do with the new one: the name, and what is wrong with it.

    Additions are none, and neither are other annotations. An argument is ``kfb.restore(like)``.
    """
    found: dict[str, str] = {}
    for what, said in [
        *_of_names(old["names"], new["names"]),
        *_of_codes(old["exit codes"], new["exit codes"]),
    ]:
        found[what] = f"{found[what]}; {said}" if what in found else said
    return found


def _of_names(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    for name, entry in old.items():
        owner = name.rpartition(".")[0]
        if name in new:
            yield from ((f"{name}{rest}", said) for rest, said in _of(entry, new[name]))
        elif owner not in old or owner in new:  # a class stands for its members
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
