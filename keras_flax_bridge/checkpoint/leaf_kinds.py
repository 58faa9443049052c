"""The kinds of leaves that a checkpoint can restore exactly; others are refused before it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.diff import dtype_name
from keras_flax_bridge.tree.leaves import from_disk, is_key, key_kind, on_disk, require_values
from keras_flax_bridge.tree.nodes import leaves_of
from keras_flax_bridge.tree.paths import Flat, Path, join_path
from keras_flax_bridge.tree.untrusted.schema import DEEPEST, HOST_ONLY, LONGEST
from keras_flax_bridge.tree.untrusted.schema import DTYPES as DTYPES
from keras_flax_bridge.tree.untrusted.texts import clipped

# dtypes that Orbax can't store: they are stored as integers of the same size
AS_WORDS = frozenset({"int1", "uint1", "uint2", "uint4", "float8_e4m3", *HOST_ONLY})
_ARRAYS = (np.ndarray, np.memmap, np.matrix)  # other subclasses hold more than their elements, such as a mask
_NUMBERS = (bool, int, float, complex)
_INTEGERS = range(-(2**63), 2**64)


def to_disk(flat: Flat) -> Flat:
    """The leaves of a state as they are stored, in every layout.

    Raises:
        NotBuiltError: naming the leaf that is abstract.
        OwnershipError: naming the leaf that was donated, is traced, or is a Keras variable.
        StructureMismatchError: listing all leaves of a kind that can't be restored.
    """
    require_values(flat, arrays=False)
    wrong = _all_refused(flat)
    if wrong:
        names = [join_path(path) for path in wrong]
        more = f", and {len(wrong) - 1} more leaves" if len(wrong) > 1 else ""
        raise StructureMismatchError(
            names[0],
            got=next(iter(wrong.values())) + more,
            expected="a jax or numpy array, a typed key, or a number, of a dtype that jax or ml_dtypes has",
            report="\n".join(
                f"  {name}  {why}" for name, why in zip(names, wrong.values(), strict=True) if more
            ),
            mismatched=names,
            fix="Nothing was written. Convert these leaves, or leave them out of the state.",
        )
    return {path: on_disk(leaf) for path, leaf in flat.items()}


def _all_refused(flat: Flat) -> dict[Path, str]:
    """The reasons why leaves can't be stored, by path; computed once for each type and dtype."""
    known: dict[tuple[type, Any], str] = {}
    wrong = {}
    for path, leaf in flat.items():
        kind = type(leaf), getattr(leaf, "dtype", None)
        why = known.get(kind)
        if why is None:
            why = _refused(leaf)
            if kind[1] is not None:  # Python numbers are checked by value
                known[kind] = why
        if why:
            wrong[path] = why
    return wrong


def _refused(leaf: Any) -> str:
    """The reason why a leaf can't be stored; empty if it can."""
    return next((refused(leaf) for kind, refused in _KINDS if isinstance(leaf, kind)), _type(leaf))


def _type(leaf: Any) -> str:
    return f"a {type(leaf).__module__}.{type(leaf).__qualname__}".replace("builtins.", "")


def _of_dtype(leaf: Any) -> str:
    return "" if _is_known(leaf.dtype) else f"the dtype {leaf.dtype}"


@cache
def _is_known(dtype: Any) -> bool:
    return dtype_name(dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype) in DTYPES


def _of_numpy(leaf: Any) -> str:
    return _of_dtype(leaf) if type(leaf) in _ARRAYS else _type(leaf)


def _of_python(leaf: Any) -> str:
    if type(leaf) not in _NUMBERS:
        return _type(leaf)
    return "a whole number of more than 64 bits" if type(leaf) is int and leaf not in _INTEGERS else ""


_KINDS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (jax.Array, lambda leaf: "" if is_key(leaf) else _of_dtype(leaf)),
    (np.ndarray, _of_numpy),
    (np.generic, _of_dtype),  # before Python's numbers: np.float64 is a float
    (_NUMBERS, _of_python),
)


def key_kinds(flat: Flat) -> dict[str, str]:
    """The implementations of typed keys, by the names of their leaves."""
    return {join_path(path): str(key_kind(leaf)) for path, leaf in flat.items() if is_key(leaf)}


def given_back(value: Any, wanted: Any, path: Path) -> Any:
    """Converts a stored leaf to the kind that is wanted.

    A numpy or Python number is restored as one. If an array was stored and `like` has a Python int or float,
    the array is kept: Flax starts steps as such a number.

    Raises:
        StructureMismatchError: naming the leaf whose numbers the wanted dtype can't hold.
    """
    _require_range(value, getattr(wanted, "dtype", None), path)
    if isinstance(wanted, np.generic):
        return np.asarray(value, wanted.dtype.newbyteorder("="))[()]
    if type(wanted) in (bool, complex):
        return type(wanted)(np.asarray(value)[()])
    return from_disk(value, wanted)


def _require_range(value: Any, dtype: Any, path: Path) -> None:
    """Checks that integers keep their values in another dtype, and that numbers stay finite."""
    if dtype is None or is_key(value) or dtype_name(getattr(value, "dtype", None)) == dtype_name(dtype):
        return
    if np.size(value) and jnp.issubdtype(dtype, jnp.integer):
        least, most = (int(value.min()), int(value.max())) if hasattr(value, "dtype") else (value, value)
        bounds = jnp.iinfo(dtype)  # type: ignore[no-untyped-call] # jax has no types for it
        fits = int(bounds.min) <= least and most <= int(bounds.max)
        got = f"{least}" if least == most else f"whole numbers from {least} to {most}"
    elif type(value) is float and jnp.issubdtype(dtype, jnp.floating):
        most = float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call] # as above
        fits, got = abs(value) <= most or not math.isfinite(value), f"{value}"
    else:
        return
    if not fits:
        raise StructureMismatchError(
            join_path(path),
            got=f"{got}, which {dtype_name(dtype)} can't hold",
            expected=f"values in the range of {dtype_name(dtype)}, the dtype in like",
            mismatched=[join_path(path)],
            fix="Nothing was assigned. Give like a wider dtype there, such as a numpy array of int64 or "
            "float64, or a Python number.",
        )


def words(dtype: Any) -> np.dtype:
    """The integer dtype as which elements of a dtype of `AS_WORDS` are stored."""
    return np.dtype(f"u{np.dtype(dtype).itemsize}")


def fits_device(dtype: Any) -> bool:
    """Whether jax supports a dtype with its current settings: no 64-bit dtypes without x64."""
    name = dtype_name(dtype)
    lacks = name in HOST_ONLY or (name in ("int1", "uint1") and not compat.has("int1, uint1"))
    return not lacks and jax.dtypes.canonicalize_dtype(dtype) == dtype


def flattened(state: Any, root: Path = ()) -> Flat:
    """The leaves of a tree by path below `root`, after checking that every path can be stored and is unique.

    Raises:
        StructureMismatchError: listing the paths that are not.
    """
    try:
        leaves = [((*root, *leaf.path), leaf.value) for leaf in leaves_of(state)]
    except (TypeError, ValueError) as error:  # of dicts with keys of several types
        raise StructureMismatchError(
            "state",
            got=f"a tree that jax can't flatten ({error})",
            expected="dicts whose keys can be sorted",
            fix="Nothing was written. Use keys of one type in each dict, such as str.",
        ) from error
    flat = dict(leaves)
    wrong = [*(_repeated(leaves) if len(flat) < len(leaves) else ()), *_unwritable(flat), *_long(flat)]
    if wrong:
        raise StructureMismatchError(
            "state",
            got=f"{len(wrong)} names of leaves that can't be stored",
            expected="a distinct name for each leaf, valid as UTF-8, of at most "
            f"{DEEPEST} levels and {LONGEST} characters",
            report="\n".join(f"  {name}" for name in wrong),
            mismatched=wrong,
            fix="Nothing was written. Rename these leaves.",
        )
    return flat


def _repeated(leaves: list[tuple[Path, Any]]) -> Iterator[str]:
    seen: set[Path] = set()
    for path, _ in leaves:
        if path in seen:
            yield join_path(path)
        seen.add(path)


def _unwritable(paths: Iterable[Path]) -> Iterator[str]:
    if not _is_text("".join("".join(path) for path in paths)):
        for path in paths:
            if not _is_text(join_path(path)):
                yield ascii(join_path(path))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _long(paths: Iterable[Path]) -> Iterator[str]:
    """Paths that reading would refuse, whatever wrote them."""
    for path in paths:
        most = 2 * len("".join(path)) + len(path)  # as text, where every character has to be escaped
        if len(path) > DEEPEST or (most > LONGEST and len(join_path(path)) > LONGEST):
            yield clipped(join_path(path), 200)
