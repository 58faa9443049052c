"""Old names that still work: each warns who uses it, until the version in which it goes.

The rows are in `words_of_versions.py`. One row is all that a rename takes: the code has the new name alone.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from keras_flax_bridge.errors import SignatureError
from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, MODULES, OPTIONS, Deprecated
from keras_flax_bridge.tree.words.words_of_versions import DEPRECATED

_PACKAGE = "keras_flax_bridge"
# frames that pass a call of the user's on, as the metaclass of `nnx.Module` does
_NOT_THE_USER = {_PACKAGE, "importlib", "keras", "flax", "jax", "optax", "orbax"}

RENAMED: dict[str, dict[tuple[str, str], Deprecated]] = {
    kind: {(door, row.old): row for row in rows for door in row.doors.split() or [""]}
    for kind, rows in DEPRECATED.items()
}
_ARGUMENTS = RENAMED[ARGUMENTS]


def present_arguments(where: str, given: dict[str, Any]) -> dict[str, Any]:
    """The named arguments of a call, those with an old name under the present one.

    Args:
        where: the public name of what is called.
        given: its named arguments.

    Raises:
        SignatureError: if an argument is given by its old and by its present name.
    """
    if not _ARGUMENTS:
        return given
    return {_present_argument(where, name, given): value for name, value in given.items()}


def _present_argument(where: str, name: str, given: Mapping[str, Any]) -> str:
    row = _ARGUMENTS.get((where, name))
    if row is None:
        return name
    if row.new in given:
        raise SignatureError(
            where,
            got=f"{name}= and {row.new}=, two names of one argument",
            expected=f"{row.new}=",
            fix=f"Leave {name}= out: it is the old name.",
        )
    _warn(f"{where}: {name}=", row, f"Pass {row.new}=.")
    return row.new


def renamed_attribute(where: str, name: str, look: Callable[[str], Any]) -> tuple[Any] | None:
    """What an old name after a dot stands for, in a tuple; None if it is not an old name.

    Args:
        where: what was asked: ``"kfb"``, ``"kfb.CheckpointManager"``.
        name: the attribute.
        look: gives the attribute of a present name.
    """
    module = f"{_PACKAGE}{where.removeprefix('kfb')}.{name}"
    if ("", module) in RENAMED[MODULES]:
        return (import_module(module),)
    row = RENAMED[ATTRIBUTES].get((where, name))
    if row is None:
        return None
    has_dots = "." in row.new
    _warn(f"{where}.{name}", row, f"Use {row.new if has_dots else f'{where}.{row.new}'}.")
    return (_public(row.new) if has_dots else look(row.new),)


def _public(name: str) -> Any:
    """What a name such as ``kfb.migrate.to_nnx`` stands for."""
    return operator.attrgetter(name.removeprefix("kfb."))(sys.modules[_PACKAGE])


def present_options(program: str, typed: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """A command line with old commands and options under their present names.

    Args:
        program: the name of the program.
        typed: the words after it.
        say: prints a warning.
    """
    renamed, words = RENAMED[OPTIONS], list(typed)
    command = ""
    for place, word in enumerate(words):
        name, *value = word.split("=", 1) if word.startswith("-") else [word]
        row = renamed.get((command or program, name))
        if row is not None:
            say(_message(f"{command} {name}".strip(), row, f"Type {row.new}."))
            words[place] = "=".join([row.new, *value])
        if not command and not word.startswith("-"):
            command = words[place]
    return words


class MovedModules(MetaPathFinder, Loader):
    """Imports a module that moved, or one inside of it: its old path gives the module at the present path."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The place of a module that moved; None for any other."""
        return None if self._row(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Puts the present module in the place of the empty one that Python made for the old path."""
        old = module.__name__
        row = self._row(old)
        assert row is not None
        new = row.new + old.removeprefix(row.old)
        _warn(f"The module {old}", row, f"Import {new}.")
        sys.modules[old] = import_module(new)

    def _row(self, name: str) -> Deprecated | None:
        for row in RENAMED[MODULES].values():
            if name == row.old or name.startswith(f"{row.old}."):
                return row
        return None


def _warn(what: str, row: Deprecated, fix: str) -> None:
    """Warns in the line of the user's code that has the old name, whatever passed the call on."""
    frame = _user()
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    place = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
    warnings.warn_explicit(_message(what, row, fix), DeprecationWarning, *place, registry)


def _message(what: str, row: Deprecated, fix: str) -> str:
    return f"{what} is deprecated since {row.since} and will be removed in {row.removal}. {fix}"


def _user() -> FrameType:
    frame = sys._getframe()
    while frame.f_back is not None and _library(frame) in _NOT_THE_USER:
        frame = frame.f_back
    return frame


def _library(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


if RENAMED[MODULES]:
    sys.meta_path.insert(0, MovedModules())
