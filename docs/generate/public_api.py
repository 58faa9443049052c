"""Writes down what is public, for a release: ``python -m docs.generate.public_api``.

The names are those of docs/api.md, read from the sources by griffe, so that no decorator stands between; the
command line is read from its parser. `tests/test_stability.py` compares the file of the last release with the
present code.
"""

import argparse
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

import keras_flax_bridge as kfb
from keras_flax_bridge.cli.main import BROKEN_PIPE, DIFFERENT, FINE, INTERRUPTED, WRONG, _parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "data"
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "keras_flax_bridge"
DIRECTIVE = re.compile(r"^\.\. (currentmodule|auto\w+):: ([\w.]+).*\n(?:   :members:(.*)\n)?", re.MULTILINE)
PARAMETER = re.compile(r'\{\s+"name": (?:"(?:[^"\\]|\\.)*"|[^"{}])*\}')  # one line each
TYPE = re.compile(r"`(\w+)(?:\[\w+\])?`")
CALLED = ("__call__", "__enter__", "__exit__")  # methods that have a syntax, which no page lists
EXIT_CODES = {
    "fine": FINE,
    "different": DIFFERENT,
    "wrong use": WRONG,
    "interrupted": INTERRUPTED,
    "broken pipe": BROKEN_PIPE,
}

Entry = dict[str, Any]


def shown() -> Iterator[tuple[str, list[str] | None]]:
    """The names on the page, and the members of each that it shows: an empty list for all, None for none."""
    module = ""
    for directive, name, members in (match.groups() for match in DIRECTIVE.finditer(PAGE.read_text())):
        if directive == "currentmodule":
            module = name
        else:
            full = name if name.startswith(f"{PACKAGE}.") else f"{module}.{name}"
            yield full, None if members is None else re.findall(r"\w+", members)


def types() -> list[str]:
    """The names of types on the page."""
    table = PAGE.read_text().partition("## Types in signatures")[2]
    return [name for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in TYPE.findall(cell)]


@cache
def package() -> Any:
    """The package as its sources have it."""
    return griffe.load(PACKAGE, search_paths=[ROOT], docstring_parser=None)


def found(path: str) -> Any:
    """What a full name stands for, where it is defined."""
    *module, name = path.removeprefix(f"{PACKAGE}.").split(".")
    inside = package()[module] if module else package()
    if inside.is_module and inside.imports.get(name, path) != path:  # a module may have the same name
        return found(inside.imports[name])
    return inside[name]


def public_name(path: str) -> str:
    """A full name as the pages write it: ``kfb.migrate.to_nnx``."""
    return path.replace(PACKAGE, "kfb", 1)


def parameters(thing: Any, *, bound: bool) -> list[Entry]:
    """What a function takes, without the object or the class of a method."""
    given = list(thing.parameters)
    return [parameter(one) for one in (given[1:] if bound else given)]


def parameter(one: Any) -> Entry:
    entry = {"name": one.name, "kind": one.kind.value, "annotation": str(one.annotation or "")}
    return entry if one.default is None else {**entry, "default": str(one.default)}


def function(thing: Any, kind: str = "function") -> Entry:
    bound = kind == "method" and "staticmethod" not in thing.labels
    kind = "classmethod" if "classmethod" in thing.labels else kind
    return {"kind": kind, "parameters": parameters(thing, bound=bound), "returns": str(thing.returns or "")}


def member(thing: Any) -> Entry:
    """A method, or a property or a field."""
    if thing.is_function:
        return function(thing, "method")
    return {"kind": "attribute", "annotation": str(thing.annotation or "")}


def bases(thing: Any, names: dict[str, str]) -> set[str]:
    """What a class is for ``isinstance`` and ``except``: public classes, and those of other libraries.

    Args:
        thing: the class.
        names: the public name of each class of the package, by the path of its definition.
    """
    above = set()
    for base in thing.bases:
        path = base if isinstance(base, str) else base.canonical_path
        if path.startswith(f"{PACKAGE}."):
            own = found(path)
            above |= bases(own, names) | ({names[own.path]} if own.path in names else set())
        else:
            above.add(path)
    return above


def fields(thing: Any) -> list[str]:
    """The fields of a NamedTuple or a dataclass, in their order."""
    plain = (own for own in thing.members.values() if own.is_attribute and "property" not in own.labels)
    return [own.name for own in plain if own.annotation is not None and not own.name.startswith("_")]


def of_class(thing: Any, shown: list[str] | None, names: dict[str, str]) -> Iterator[tuple[str, Entry]]:
    """The entries of a class: under "" itself, then its public members."""
    members = thing.all_members
    entry = {"kind": "class", "bases": sorted(bases(thing, names)), "fields": fields(thing)}
    if "__init__" in members:
        entry["parameters"] = parameters(members["__init__"], bound=True)
    yield "", entry
    own = [name for name, one in members.items() if not name.startswith("_") and is_documented(one)]
    for name in [*(own if shown == [] else shown or ()), *(name for name in CALLED if name in thing.members)]:
        yield f".{name}", member(members[name])


def is_documented(thing: Any) -> bool:
    return thing.is_function or "property" in thing.labels


def python_names() -> Iterator[tuple[str, Entry]]:
    """Every name on the page, with its members."""
    names = {found(path).path: public_name(path) for path, _ in shown()}
    for path, members in shown():
        thing, name = found(path), public_name(path)
        if thing.is_class:
            yield from ((f"{name}{rest}", entry) for rest, entry in of_class(thing, members, names))
        else:
            yield name, function(thing)
    for name in types():
        found(f"{PACKAGE}.tree.types.{name}")
        yield f"kfb.tree.types.{name}", {"kind": "type"}


def commands() -> Iterator[tuple[str, Entry]]:
    """Every command of the command line, its options in the form of parameters."""
    parser = _parser()
    for name, command in {"": parser, **parser.commands}.items():
        actions = [
            action for action in command._actions if not isinstance(action, argparse._SubParsersAction)
        ]
        given = [
            option(action, name) for action in actions for name in action.option_strings or [action.dest]
        ]
        yield f"{parser.prog} {name}".strip(), {"kind": "command", "parameters": given}


def option(action: argparse.Action, name: str) -> Entry:
    kind = "positional-only" if not action.option_strings else "flag" if action.nargs == 0 else "option"
    entry = {"name": name, "kind": kind}
    if action.choices is not None:
        entry["choices"] = [str(choice) for choice in action.choices]
    is_free = not action.required or action.nargs in ("*", "?")
    return {**entry, "default": str(action.default)} if is_free else entry


def api() -> dict[str, Any]:
    """All that is public, as JSON types."""
    names = {**dict(python_names()), **dict(commands())}
    return {"version": kfb.__version__, "names": names, "exit codes": EXIT_CODES}


def stored() -> Path:
    """The file of the last release."""
    (file,) = FOLDER.glob("api-*.json")
    return file


def one_line(found: re.Match[str]) -> str:
    return re.sub(r"(?<=[{[]) | (?=[]}])", "", " ".join(found[0].split()))


def write() -> None:
    """Puts the file of this version in the place of the last one."""
    for file in FOLDER.glob("api-*.json"):
        file.unlink()
    present = api()
    text = json.dumps(present, indent=1)
    text = PARAMETER.sub(one_line, text)
    (FOLDER / f"api-{present['version']}.json").write_text(text + "\n")


if __name__ == "__main__":
    write()
