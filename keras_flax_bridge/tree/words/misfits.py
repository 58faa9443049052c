"""Describes why a call does not fit a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from keras_flax_bridge.errors import SignatureError
from keras_flax_bridge.tree.words.lookup import Answer, about_argument, answer, known
from keras_flax_bridge.tree.words.word import ARGUMENTS, PLACES

Parameter = inspect.Parameter
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Misfit(NamedTuple):
    """A call that Python would refuse.

    Attributes:
        where: the public name of the callable.
        function: the callable.
        parameters: its parameters, without the object or the class of a method.
        args: positional arguments.
        kwargs: named ones.
    """

    where: str
    function: Callable[..., Any]
    parameters: list[Parameter]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def error(self) -> SignatureError:
        """The error for the call: unknown names first, since one of them may stand for a missing one."""
        if unknown := self._unknown():
            return unknown_arguments(self.where, self.function, unknown, named(self.parameters))
        if len(self.args) > len(self._by_place()) and not self._takes(Parameter.VAR_POSITIONAL):
            return self._too_many()
        if lacking := self._lacking():
            missing = ", ".join(f"{name}=" for name in lacking)
            fix = " ".join(about_argument(self.function, name) for name in lacking)
            return SignatureError(self.where, got=f"a call without {missing}", expected=missing, fix=fix)
        twice = [name for name in self._by_place()[: len(self.args)] if name in self.kwargs]
        got = f"{', '.join(f'{name}=' for name in twice)} twice, by place and by name"
        return SignatureError(self.where, got=got, expected="each argument once", fix="Pass it by keyword.")

    def _takes(self, kind: Any) -> bool:
        return any(p.kind is kind for p in self.parameters)

    def _by_place(self) -> list[str]:
        kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.POSITIONAL_ONLY)
        return [p.name for p in self.parameters if p.kind in kinds]

    def _unknown(self) -> list[str]:
        names = [name for name in self.kwargs if name not in named(self.parameters)]
        if not self._takes(Parameter.VAR_KEYWORD):
            return names
        # if any name is accepted, a name from the table may stand for the missing one
        return [name for name in names if known(ARGUMENTS, self.where, name)]

    def _lacking(self) -> list[str]:
        passed = {*self._by_place()[: len(self.args)], *self.kwargs}
        needed = (p.name for p in self.parameters if p.kind in _NAMED and p.default is Parameter.empty)
        return [name for name in needed if name not in passed]

    def _too_many(self) -> SignatureError:
        by_place, count = self._by_place(), len(self.args)
        taken = f"{len(by_place)} ({', '.join(by_place)})" if by_place else "none"
        by_name = [f"{p.name}=" for p in self.parameters if p.kind is Parameter.KEYWORD_ONLY]
        fix = f"Pass by name what comes after: {', '.join(by_name)}." if by_name else "Leave the others out."
        if self._takes(Parameter.VAR_KEYWORD):
            fix = "Pass each by name."
        if found := known(ARGUMENTS, self.where, PLACES):
            taken, fix = f"{taken}, or {_shown(found)}", found.why
        got = f"{count} positional argument{'s' if count > 1 else ''}"
        return SignatureError(self.where, got=got, expected=taken, fix=fix)


def named(parameters: Iterable[Parameter]) -> list[str]:
    """The parameters that can be passed by keyword."""
    return [p.name for p in parameters if p.kind in _NAMED and p.name not in ("self", "cls")]


def unknown_arguments(
    where: str, function: Callable[..., Any], unknown: Sequence[str], names: Sequence[str]
) -> SignatureError:
    """The error for arguments that a function does not have; `names` are its arguments."""
    expected, fix = answer_arguments(where, unknown, names, lambda name: about_argument(function, name))
    got = f"unknown argument{'s' if len(unknown) > 1 else ''} {', '.join(f'{name}=' for name in unknown)}"
    return SignatureError(where, got=got, expected=expected, fix=fix)


def answer_arguments(
    where: str, unknown: Sequence[str], names: Sequence[str], about: Callable[[str], str]
) -> tuple[str, str]:
    """The `expected` and the `fix` of an error about unknown arguments.

    Args:
        where: the public name of the callable.
        unknown: the arguments that it does not have.
        names: those that it has.
        about: returns a sentence about one of these names.
    """
    answers = {name: answer(ARGUMENTS, where, name, names, about) for name in unknown}
    found = {name: one for name, one in answers.items() if one.right}
    if not found:
        taken = f"one of {', '.join(f'{name}=' for name in names)}" if names else "no argument"
        return taken, f"help({where}) explains its arguments."
    if len(unknown) == 1:
        ((_, one),) = found.items()
        return _shown(one), one.why
    right = ", ".join(f"{_shown(one)} for {name}=" for name, one in found.items())
    return right, " ".join(f"For {name}=: {one.why}" for name, one in found.items())


def _shown(found: Answer) -> str:
    return found.right if found.is_name else f"{found.right}="
