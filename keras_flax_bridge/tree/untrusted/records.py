"""Records that are stored as JSON: frozen dataclasses, with a check for each field.

The JSON of a record has two more fields: ``format``, a number that rises only when an older reader would read
the record wrongly, and ``written_by``, the version of this package. A reader ignores fields that it does not
know, so that a newer version can add some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata as packages
from typing import Any, ClassVar, TypeVar

from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.untrusted import schema
from keras_flax_bridge.tree.untrusted.schema import Check, Malformed
from keras_flax_bridge.tree.untrusted.texts import clipped

FORMAT, WRITTEN_BY = "format", "written_by"
_STAMP: dict[str, Check] = {FORMAT: schema.whole(1), WRITTEN_BY: schema.text}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Base class of stored records; subclasses define the fields with `field`."""

    FORMAT: ClassVar[int] = 1

    @classmethod
    def require_consistent(cls, found: Mapping[str, Any]) -> None:
        """Checks fields against each other, after each was checked by itself.

        Raises:
            Malformed: naming the field that the others contradict.
        """


Kind = TypeVar("Kind", bound=Record)


def field(
    check: Check,
    *,
    read: Callable[[Any], Any] | None = None,
    write: Callable[[Any], Any] | None = None,
    **default: Any,
) -> Any:
    """A field of a record.

    Args:
        check: checks the value that a file has there.
        read: makes the value of the field from JSON types; None where it is of those.
        write: the reverse.
        default: ``default=`` or ``default_factory=`` of `dataclasses.field`; without one the field is
            required. A field whose value is None is not written.
    """
    return dataclasses.field(metadata={"check": check, "read": read, "write": write}, **default)


def checks(kind: type[Record]) -> dict[str, Check]:
    """The check of every field of the JSON of a record."""
    return {**_STAMP, **{one.name: one.metadata["check"] for one in dataclasses.fields(kind)}}


def to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON types."""
    return {FORMAT: record.FORMAT, WRITTEN_BY: _version(), **content(record)}


def content(record: Record) -> dict[str, Any]:
    """The fields of a record without its version, for files whose first readers reject other fields."""
    return {
        one.name: (one.metadata["write"] or _as_is)(vars(record)[one.name])
        for one in dataclasses.fields(record)
        if vars(record)[one.name] is not None
    }


@cache
def _version() -> str:
    try:
        return f"keras-flax-bridge {packages.version('keras-flax-bridge')}"
    except packages.PackageNotFoundError:  # it runs from its sources
        return "keras-flax-bridge"


def require(kind: type[Record], found: Any) -> None:
    """Checks the JSON of a record: every field, then their consistency.

    Raises:
        Malformed: naming the field.
    """
    schema.record(checks(kind), required=_required(kind))(found, "")
    kind.require_consistent(found)


def _required(kind: type[Record]) -> list[str]:
    missing = dataclasses.MISSING
    return [one.name for one in dataclasses.fields(kind) if one.default is one.default_factory is missing]


def from_json(
    kind: type[Kind],
    found: Any,
    where: str,
    *,
    fix: str,
    error: type[CheckpointError] = CheckpointError,
    of: str = "",
) -> Kind:
    """The record that `to_json` described.

    Args:
        kind: the class of the record.
        found: JSON types.
        where: the file that they are in, for errors.
        fix: what to do if a field is malformed.
        error: what to raise then.
        of: the text of the error before the name of the field, such as ``"a map with "``.

    Raises:
        CheckpointError: if a newer version wrote a format that this one would read wrongly.
        error: naming the field that is missing or malformed.
    """
    try:
        _require_format(kind, found, where)
        require(kind, found)
    except Malformed as fault:
        raise malformed(fault, where, fix=fix, error=error, of=of) from fault
    present = (one for one in dataclasses.fields(kind) if one.name in found)
    return kind(**{one.name: (one.metadata["read"] or _as_is)(found[one.name]) for one in present})


def _as_is(value: Any) -> Any:
    return value


def malformed(
    fault: Malformed, where: str, *, fix: str, error: type[CheckpointError] = CheckpointError, of: str = ""
) -> CheckpointError:
    """The error for a field that is not as this package writes it."""
    got = f"{of}{clipped(fault.field or 'no fields', 200)}: {fault.got}"
    return error(where, got=got, expected=fault.expected, fix=fix)


def _require_format(kind: type[Record], found: Any, where: str) -> None:
    """Checks that this version supports the format, before other fields, which may differ."""
    if not isinstance(found, dict) or FORMAT not in found:
        return
    _STAMP[FORMAT](found[FORMAT], FORMAT)
    if found[FORMAT] > kind.FORMAT:
        writer = found.get(WRITTEN_BY)
        by = f", written by {clipped(writer)}" if isinstance(writer, str) else ""
        raise CheckpointError(
            where,
            got=f"format {found[FORMAT]}{by}",
            expected=f"format {kind.FORMAT}",
            fix="A newer version of keras-flax-bridge wrote it: update the package.",
        )
