"""Matches stored leaves with the leaves of the target: `include`, `rename`, `cast`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.checkpoint.leaf_kinds import fits_device
from keras_flax_bridge.checkpoint.options import Include, Rename, RestoreOptions
from keras_flax_bridge.checkpoint.targets import Target, subtrees
from keras_flax_bridge.errors import StructureMismatchError, printable
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.trees import COLLECTIONS, WEIGHTS
from keras_flax_bridge.tree.diff import Diff, same_spec
from keras_flax_bridge.tree.leaves import KeyData, is_key, key_kind, on_disk
from keras_flax_bridge.tree.paths import Flat, Path, compiled_pattern, join_path, split_path

log = logging.getLogger("keras_flax_bridge")


def plan(stored: Flat, target: Target, where: str, options: RestoreOptions) -> dict[Path, Path]:
    """The stored path of every wanted leaf.

    A weight is looked for in both trees of weights, so one that was frozen or unfrozen since, and
    one that Linen keeps in another collection, is found by its structural key.

    Raises:
        StructureMismatchError: listing all leaves that are missing, unexpected or of another shape
            or dtype; nothing was read yet.
    """
    chosen, names = _chooser(options.include), renamed(stored, options.rename, where)
    _require_included(options.include, [*names, *target.wanted], where)
    wanted = {path: leaf for path, leaf in target.wanted.items() if chosen(path)}
    found = _found(wanted, names)
    used = set(found.values())
    left = {
        name: stored[path]
        for name, path in names.items()
        if path not in used and chosen(name) and _within(name, target.scope)
        if name[1:] not in target.ignored
    }
    mismatched = {
        path: (stored[place], wanted[path])
        for path, place in found.items()
        if not _compatible(stored[place], wanted[path], options.cast)
    }
    missing = {p: leaf for p, leaf in wanted.items() if p not in found and p not in target.optional}
    difference = Diff(missing, left, mismatched)
    good = {path: place for path, place in found.items() if path not in mismatched}
    if (wanted and not good) or (difference and not options.partial):
        raise difference.error(where, _FIX if good else _NOTHING)
    if difference:
        log.warning("%s: restored %d leaves, not these:\n%s", printable(where), len(good), difference.table())
    return good


def selected(stored: Flat, where: str, options: RestoreOptions) -> Flat:
    """The stored leaves that `include` selects, by their names after `rename`.

    Raises:
        StructureMismatchError: if there is none.
    """
    names, chosen = renamed(stored, options.rename, where), _chooser(options.include)
    _require_included(options.include, names, where)
    found = {name: stored[place] for name, place in names.items() if chosen(name)}
    if not found:
        raise StructureMismatchError(
            where,
            got=f"include={printable(repr(options.include))}, which selects nothing",
            expected="a part of what is stored",
            fix=f"The first names are {', '.join(sorted({path[0] for path in names}))}.",
        )
    return found


def _within(path: Path, subtrees: Iterable[Path] | None) -> bool:
    return subtrees is None or any(path[: len(root)] == root for root in subtrees)


_FIX = (
    "Nothing was assigned. Restore into the architecture that was saved, name what you want with "
    "include=['params', 'non_trainable'], map names with rename=, or pass partial=True."
)
_NOTHING = (
    "Not one leaf matches, so nothing was assigned. It is the checkpoint of something else, or "
    "its names are others: rename= maps them."
)


_WHERE = (*WEIGHTS, *sorted(COLLECTIONS - set(WEIGHTS)))  # in the order in which a weight is looked for


def _found(wanted: Iterable[Path], names: Mapping[Path, Path]) -> dict[Path, Path]:
    """The stored path of each target leaf: the same name, otherwise the weight in another collection."""
    found = {path: names[path] for path in wanted if path in names}
    used = set(found.values())
    for path in wanted:
        places = [(tree, *path[1:]) for tree in _WHERE if path[0] in COLLECTIONS and path not in found]
        free = [names[place] for place in places if place in names and names[place] not in used]
        if free:
            found[path] = free[0]
            used.add(free[0])
    return found


def _require_included(include: Include, paths: Iterable[Path], where: str) -> None:
    """Checks that every prefix of `include` names something.

    Raises:
        StructureMismatchError: listing entries that match nothing.
    """
    if include is None or isinstance(include, (str, re.Pattern)):
        return
    of_state = subtrees(trees.names())  # any of these may have no leaves
    roots = {prefix: split_path(prefix) for prefix in include}
    nothing = [
        p for p, root in roots.items() if root not in of_state and not any(_within(x, [root]) for x in paths)
    ]
    if nothing:
        raise StructureMismatchError(
            where,
            got=f"include= with {', '.join(map(repr, nothing))}, which names nothing",
            expected="prefixes of whole names, such as 'params/dense'",
            fix=f"The first names are {', '.join(sorted({path[0] for path in paths}))}.",
        )


def _chooser(include: Include) -> Callable[[Path], bool]:
    """A predicate of the paths that `include` selects, by a regular expression or a list of prefixes."""
    if include is None:
        return lambda path: True
    texts = isinstance(include, (str, re.Pattern)) or (
        isinstance(include, (list, tuple, set, frozenset)) and all(isinstance(p, str) for p in include)
    )
    _require_form(include, texts, "include", "a regular expression, or a list of prefixes")
    if isinstance(include, (str, re.Pattern)):
        pattern = compiled_pattern(include, "include", _LITERALLY)
        return lambda path: pattern.search(join_path(path)) is not None
    prefixes = [split_path(prefix) for prefix in include]
    return lambda path: _within(path, prefixes)


_LITERALLY = "Escape special characters, or pass a list of prefixes."


def _require_form(argument: Any, allowed: bool, where: str, expected: str) -> None:
    if not allowed:
        raise StructureMismatchError(
            where, got=f"a {type(argument).__name__}", expected=expected, fix="See the docs of restore."
        )


def renamed(stored: Iterable[Path], rename: Rename, where: str) -> dict[Path, Path]:
    """The stored path of every name, after renaming.

    Raises:
        StructureMismatchError: if a key of a dict is not stored, or two leaves get one name.
    """
    if isinstance(rename, Mapping):
        unknown = [name for name in rename if split_path(name) not in stored]
        if unknown:
            raise StructureMismatchError(
                where,
                report=[f"  not stored  {name}" for name in unknown],
                unexpected=unknown,
                fix="The keys of rename= are whole stored paths. For prefixes pass pairs: [('^a/', 'b/')].",
            )
    function = _renamer(rename)
    names: dict[Path, Path] = {}
    for path in stored:
        new = function(join_path(path))
        _require_form(new, isinstance(new, str), "rename", "a function that gives a name for every name")
        name = split_path(new)
        if name in names:
            raise StructureMismatchError(
                where,
                unexpected=[join_path(names[name]), join_path(path)],
                fix=f"rename= gives both the name {join_path(name)!r}; each needs one of its own.",
            )
        names[name] = path
    return names


def _renamer(rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    if isinstance(rename, Mapping):
        return lambda name: rename.get(name, name)
    pairs = isinstance(rename, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in rename
    )
    _require_form(
        rename, pairs, "rename", "a dict, a function, or pairs of regular expression and replacement"
    )
    compiled = [
        (compiled_pattern(pattern, "rename", _LITERALLY), replacement) for pattern, replacement in rename
    ]
    return lambda name: _substituted(name, compiled)


def _substituted(name: str, pairs: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in pairs:
        name = pattern.sub(replacement, name)
    return name


def _compatible(stored: Any, wanted: Any, cast: bool) -> bool:
    """The same shape and dtype, or kind of dtype where a cast was asked for.

    A Python number fits a scalar of its kind, since Flax starts steps as one. The data of a key fits a key of
    the same implementation: another would take the same bits for another stream.
    """
    numbers = (bool, int, float, complex)
    if type(wanted) in numbers or type(stored) in numbers:
        return np.shape(stored) == np.shape(wanted) == () and _kind(stored) == _kind(wanted)
    if isinstance(stored, KeyData) and is_key(wanted) and stored.impl != str(key_kind(wanted)):
        return False
    wanted = on_disk(wanted)
    if cast and hasattr(stored, "shape") and hasattr(wanted, "shape"):
        return stored.shape == wanted.shape and _kind(stored) == _kind(wanted)
    return same_spec(stored, wanted)


def _kind(leaf: Any) -> str:
    """``bool``, ``integer``, ``floating`` or ``complexfloating``, of a number or an array; else its dtype."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    kinds = ("bool", "integer", "floating", "complexfloating")
    found = (kind for kind in kinds if jnp.issubdtype(dtype, getattr(jnp, kind.replace("bool", "bool_"))))
    return next(found, str(dtype))


def placement(stored: Any, wanted: Any) -> Any:
    """The abstract array for Orbax: the stored shape and dtype, with the sharding of the target leaf."""
    if not hasattr(stored, "shape"):
        return stored
    if not fits_device(stored.dtype):  # jax would cut it to 32 bits, or refuse it
        return np.broadcast_to(np.zeros((), stored.dtype), stored.shape)
    sharding = getattr(wanted, "sharding", None)
    if sharding is None:  # never left open: Orbax would want the devices of the writer
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
