"""Checks of untrusted JSON: types, ranges, names; each error names its field."""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax.numpy as jnp

from keras_flax_bridge.tree import untrusted
from keras_flax_bridge.tree.paths import join_path, split_path
from keras_flax_bridge.tree.untrusted.texts import clipped

Check = Callable[[Any, str], None]  # of a value, and the name of its field; raises `Malformed`

# dtypes that numpy has through ml_dtypes, and jax has no arrays of: they stay on the host
HOST_ONLY = frozenset({"float6_e2m3fn", "float6_e3m2fn", "complex32", "bcomplex32"})
DTYPES = untrusted.DTYPES | HOST_ONLY  # the allowed dtypes: no other text of a checkpoint becomes a dtype
DEEPEST = 256  # names in a path: Orbax reads a tree by recursion, several calls a level
LONGEST = 1 << 14  # characters of a path: a key of the storage of Orbax has at most 64 KiB
_MOST_AXES = 64  # of numpy
_MOST_ELEMENTS = 1 << 48  # of an array: the address space of a machine


class Malformed(ValueError):  # noqa: N818 - it never leaves the package
    """A field with an invalid value."""

    def __init__(self, field: str, got: str, expected: str):
        super().__init__(f"{field}: got {got}, expected {expected}")
        self.field, self.got, self.expected = field, got, expected


def said(value: Any) -> str:
    """A description of a value for errors: the beginning of a number or string, otherwise the type.

    >>> said([1, 2]), said(-1), said(None)
    ('a list of 2', '-1', 'null')
    """
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return "null" if value is None else clipped(value)


def _require(holds: bool, value: Any, field: str, expected: str) -> None:
    if not holds:
        raise Malformed(field, said(value), expected)


# --- single values


def text(value: Any, field: str) -> None:
    """Checks that a value is text."""
    _require(isinstance(value, str), value, field, "a text")


def flag(value: Any, field: str) -> None:
    """Checks that a value is true or false."""
    _require(isinstance(value, bool), value, field, "true or false")


def whole(least: int = 0, most: int = 1 << 63) -> Check:
    """A check for a whole number in a range."""

    def check(value: Any, field: str) -> None:
        _require(type(value) is int and least <= value < most, value, field, f"{least} to {most - 1}")

    return check


def anything(value: Any, field: str) -> None:
    """Accepts any value, which is checked where it is used."""


def optional(check: Check) -> Check:
    """A check that lets null pass."""

    def checked(value: Any, field: str) -> None:
        if value is not None:
            check(value, field)

    return checked


def list_of(check: Check) -> Check:
    """A check for a list of values of one kind."""

    def checked(value: Any, field: str) -> None:
        _require(isinstance(value, list), value, field, "a list")
        for i, one in enumerate(value):
            check(one, f"{field}/{i}")

    return checked


def table_of(check: Check) -> Check:
    """A check for an object from texts to values of one kind."""

    def checked(value: Any, field: str) -> None:
        _require(isinstance(value, dict), value, field, "an object")
        try:
            for key, one in value.items():
                check(one, key)
        except Malformed as fault:
            raise Malformed(_below(field, fault.field), fault.got, fault.expected) from fault

    return checked


def record(fields: Mapping[str, Check], required: Iterable[str] = ()) -> Check:
    """A check for an object with known fields; other fields are allowed."""
    wanted = tuple(required)

    def checked(value: Any, field: str) -> None:
        _require(isinstance(value, dict), value, field, "an object")
        for name in wanted:
            if name not in value:
                raise Malformed(_below(field, name), "nothing", "a value")
        for name, one in value.items():
            if name in fields:
                fields[name](one, _below(field, name))

    return checked


def _below(field: str, name: str) -> str:
    return f"{field}/{name}" if field else name


# --- paths, shapes, dtypes


def name(value: Any, field: str) -> None:
    """A path as `join_path` writes it."""
    _require(isinstance(value, str), value, field, "the path of a leaf")
    fits = len(value) <= LONGEST and value.count("/") < DEEPEST
    _require(fits, value, field, f"a path of at most {DEEPEST} names and {LONGEST} characters")
    written = "~" not in value or join_path(split_path(value)) == value
    _require(written, value, field, "a path in which ~ is followed by 0 or 1")


def shape(value: Any, field: str) -> None:
    """The sizes of the axes of an array."""
    if type(value) is not list or len(value) > _MOST_AXES:
        raise Malformed(field, said(value), "the shape of an array")
    elements = 1
    for size in value:
        if type(size) is not int or size < 0:
            raise Malformed(field, f"an axis of {said(size)}", "axes of 0 or more elements")
        elements *= size or 1  # also of an array without elements
        if elements > _MOST_ELEMENTS:
            raise Malformed(field, "a shape of too many elements", f"at most {_MOST_ELEMENTS} elements")


def dtype(value: Any, field: str) -> None:
    """The name of a dtype."""
    if type(value) is not str or value not in DTYPES:
        raise Malformed(field, said(value), "the name of a dtype that jax knows")


def spec(value: Any, field: str) -> None:
    """Dtype and shape of an array."""
    if type(value) is not list or len(value) != 2:
        raise Malformed(field, said(value), "[dtype, shape]")
    dtype(value[0], field)
    shape(value[1], field)


def table_of_leaves(check: Check) -> Check:
    """A check for an object from the paths of leaves to values of one kind."""
    checked = table_of(check)

    def leaves(value: Any, field: str) -> None:
        checked(value, field)
        for key in filter(_is_unusual, value):
            name(key, field)

    return leaves


def _is_unusual(path: str) -> bool:
    """Whether `name` might reject a path; a fast check, since `name` is slow for large states."""
    return "~" in path or len(path) > DEEPEST


def require_apart(tables: Iterable[Iterable[str]], field: str) -> None:
    """Checks that no path occurs twice, and that none is a prefix of another.

    Raises:
        Malformed: naming one that does.
    """
    names: set[str] = set()
    for table in tables:
        twice = names.intersection(table)
        if twice:
            raise Malformed(field, f"{clipped(min(twice))} twice", "distinct names")
        names.update(table)
    above = {n.rpartition("/")[0] for n in names if "/" in n}
    while above:
        if not above.isdisjoint(names):
            both = clipped(min(above.intersection(names)))
            raise Malformed(field, f"leaves below {both}, which is a leaf", "leaves, none below another")
        above = {n.rpartition("/")[0] for n in above if "/" in n}


itemsize = cache(lambda name: jnp.dtype(name).itemsize)


def place(value: Any, field: str) -> None:
    """The offset of an array in a buffer, its dtype and its shape."""
    if type(value) is not list or len(value) != 3:
        raise Malformed(field, said(value), "[begin, dtype, shape]")
    begin = value[0]
    if type(begin) is not int or begin < 0:
        raise Malformed(field, said(begin), "where the leaf begins, 0 or more")
    dtype(value[1], field)
    shape(value[2], field)


def require_within(places: Mapping[str, Any], size: int, field: str) -> None:
    """Checks that arrays are inside a buffer and don't overlap.

    Raises:
        Malformed: naming one that does not.
    """
    end, before = 0, ""
    for begin, length, key in sorted(
        (begin, math.prod(axes) * itemsize(kind), key) for key, (begin, kind, axes) in places.items()
    ):
        if begin < end:
            got = f"{begin}, inside {clipped(before)}"
            raise Malformed(f"{field}/{key}", got, "a distinct place")
        end, before = begin + length, key
        if end > size:
            raise Malformed(f"{field}/{key}", f"{begin} to {end}", f"a place within {size} bytes")


# --- the position of a data iterator

POSITION = record({"bytes": optional(text)})


def position(value: Any, field: str) -> None:
    """The result of `data_positions.position`."""
    POSITION(value, field)
    encoded = value.get("bytes")
    _require(encoded is not None or "json" in value, value, field, "a position, under json or bytes")
    if encoded is not None:
        try:
            b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Malformed(_below(field, "bytes"), "a text", "base64") from error
