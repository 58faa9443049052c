"""Errors for unknown names of modules, classes and objects, and for unknown command-line names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from keras_flax_bridge.errors import UnknownNameError
from keras_flax_bridge.tree.words.deprecations import renamed_attribute
from keras_flax_bridge.tree.words.lookup import answer, known
from keras_flax_bridge.tree.words.word import ATTRIBUTES, OPTIONS


def missing_in_module(where: str, name: str, own: Mapping[str, Any], *others: str) -> Any:
    """What a module's ``__getattr__`` gives for a name that the module does not have.

    Args:
        where: the module's public name.
        name: the attribute.
        own: the module's globals.
        others: names that it has beside these.

    Raises:
        UnknownNameError: if it is not an old name either.
    """
    if renamed := renamed_attribute(where, name, own.__getitem__):
        return renamed[0]
    raise unknown_name(where, name, [*own, *others])


def unknown_name(where: str, name: str, names: Iterable[str]) -> AttributeError:
    """The error for an attribute that is not there.

    Libraries ask for names with an underscore in front to see what an object can do: of these only what is in
    the table is answered.

    Args:
        where: the object: ``"kfb"``, ``"kfb.CheckpointManager"``.
        name: the attribute.
        names: those that it has.
    """
    plain = f"{where} has no attribute {name!r}"
    if name.startswith("_") and known(ATTRIBUTES, where, name) is None:
        return AttributeError(plain)
    public = sorted(own for own in names if not own.startswith("_"))
    found = answer(ATTRIBUTES, where, name, public, lambda right: f"Correct the name: {where}.{right}.")
    return UnknownNameError(
        f"{where}.{name}",
        got=f"a name that {where} does not have",
        expected=found.right or "one of its public names",
        fix=found.why or f"dir({where}) lists them.",
    )


def answer_option(program: str, name: str, names: Iterable[str]) -> str:
    """The closest known command or option; "" if none is similar.

    >>> answer_option("keras-flax-bridge verify", "--latest", ["--step", "--json"])
    'Type --step. It is a step of a root folder; without it the newest.'

    Args:
        program: the program, or with its command.
        name: the name that was typed.
        names: what there is.
    """
    found = answer(OPTIONS, program.split()[-1], name, names, lambda right: "")
    return f"Type {found.right}. {found.why}".strip() if found.right else ""
