"""Plans a restore: which stored leaf goes where, decided and checked before anything is read."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import keras
from flax import nnx

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._intake import receivers
from keras_flax_bridge._paths import Flat, Path
from keras_flax_bridge.errors import StructureMismatchError

log = logging.getLogger("keras_flax_bridge")

Include = str | re.Pattern | Sequence[str] | None
Rename = Mapping[str, str] | Sequence[tuple[str, str]] | Callable[[str], str] | None

WEIGHTS = ("params", "non_trainable")


class Target(NamedTuple):
    """What a restore fills: the leaves it wants, and how they are put in place."""

    wanted: Flat
    scope: frozenset[Path] | None  # the stored subtrees that must be used up; None for everything
    put: Callable[[Flat], Any]


def target_of(like: Any, *, ours: bool) -> Target:
    """The target that `like` stands for.

    Args:
        like: a `keras.Model` or a dict of them, an `nnx.Module`, or a pytree of arrays or
            `jax.ShapeDtypeStruct`.
        ours: whether the checkpoint is of this package, so that its trees are known.
    """
    if isinstance(like, keras.layers.Layer):
        return _keras_target(like, {(): like})
    if _are_models(like):
        return _keras_target(like, {(name,): model for name, model in like.items()})
    if isinstance(like, nnx.Module):
        return _nnx_target(like)
    wanted = _paths.flatten(like)
    tops = {path[0] for path in wanted}
    is_variables = ours and isinstance(like, Mapping) and "step" not in tops
    scope = _subtrees({*WEIGHTS, *tops}) if is_variables else None
    return Target(wanted, scope, lambda values: _paths.fill(like, values))


def _subtrees(names: Iterable[str]) -> frozenset[Path]:
    return frozenset((name,) for name in names)


def _are_models(like: Any) -> bool:
    values = like.values() if isinstance(like, Mapping) else ()
    return bool(values) and all(isinstance(value, keras.layers.Layer) for value in values)


def _keras_target(like: Any, models: Mapping[Path, Any]) -> Target:
    """The variables of some models, each below its name in every tree."""
    entries = {
        (tree, *prefix, *entry.path): entry
        for prefix, model in models.items()
        for tree, found in receivers(model).items()
        for entry in found
    }

    def put(values: Flat) -> Any:
        for path, value in values.items():
            entries[path].variable.assign(value)
        for model in models.values():
            V.refresh(model)
            if any(path[0] == "metrics" for path in values) and not V.metrics_built(model):
                log.warning("model %r: its compiled metrics saw no data yet and start at zero", model.name)
        return like

    wanted = {path: V.variable_spec(entry.variable) for path, entry in entries.items()}
    scope = {(tree, *prefix) for prefix, model in models.items() for tree in receivers(model)}
    return Target(wanted, frozenset(scope), put)


def _nnx_target(module: nnx.Module) -> Target:
    flat = nnx.to_flat_state(nnx.state(module))
    by_path = getattr(module, "variables_by_path", None)  # ToNNX says which key an attribute stands for
    variables = by_path() if by_path else {tuple(map(str, path)): variable for path, variable in flat}
    named = {("params", *path): variable for path, variable in variables.items()}

    def put(values: Flat) -> Any:
        for path, value in values.items():
            named[path].set_value(value)
        return module

    return Target({p: v.get_value() for p, v in named.items()}, _subtrees(WEIGHTS), put)


def plan(
    stored: Flat, target: Target, where: str, *, include: Include, rename: Rename, partial: bool
) -> dict[Path, Path]:
    """The stored path of every wanted leaf.

    A weight is looked for in both trees of weights, so one that was frozen or unfrozen since, and
    one that Linen keeps in another collection, is found by its structural key.

    Raises:
        StructureMismatchError: listing all leaves that are missing, unexpected or of another shape
            or dtype; nothing was read yet.
    """
    chosen = _chooser(include)
    names = _renamed(stored, rename, where)
    wanted = {path: leaf for path, leaf in target.wanted.items() if chosen(path)}
    pairs = {path: next(filter(names.__contains__, _candidates(path)), None) for path in wanted}
    found = {path: names[name] for path, name in pairs.items() if name is not None}
    used = set(found.values())
    left = {
        name: stored[path]
        for name, path in names.items()
        if path not in used and chosen(name) and _within(name, target.scope)
    }
    mismatched = {
        path: (stored[place], wanted[path])
        for path, place in found.items()
        if not _compatible(stored[place], wanted[path])
    }
    missing = {path: leaf for path, leaf in wanted.items() if path not in found}
    difference = _paths.Diff(missing, left, mismatched)
    good = {path: place for path, place in found.items() if path not in mismatched}
    if not good or (difference and not partial):
        raise difference.error(where, _FIX if good else _NOTHING)
    if difference:
        log.warning("%s: restored %d leaves, not these:\n%s", where, len(good), difference.table())
    return good


def _within(path: Path, subtrees: Iterable[Path] | None) -> bool:
    return subtrees is None or any(path[: len(root)] == root for root in subtrees)


_FIX = (
    "Nothing was assigned. Restore into the architecture that was saved, name what you want with "
    "include=['params', 'non_trainable'], map names with rename=, or pass partial=True."
)
_NOTHING = "Not one leaf matches, so nothing was assigned. It is the checkpoint of something else."


def _candidates(path: Path) -> list[Path]:
    return [path, *((tree, *path[1:]) for tree in WEIGHTS)] if path[0] not in _STRICT else [path]


_STRICT = ("step", "opt_state", "metrics", "eval_metrics")


def _chooser(include: Include) -> Callable[[Path], bool]:
    """Which paths `include` names: by a regular expression, or by a list of prefixes."""
    if include is None:
        return lambda path: True
    if isinstance(include, (str, re.Pattern)):
        pattern = re.compile(include)
        return lambda path: pattern.search(_paths.join(path)) is not None
    prefixes = [_paths.split(prefix) for prefix in include]
    return lambda path: _within(path, prefixes)


def _renamed(stored: Iterable[Path], rename: Rename, where: str) -> dict[Path, Path]:
    """The stored path of every name, after renaming."""
    function = _renamer(rename)
    names: dict[Path, Path] = {}
    for path in stored:
        name = _paths.split(function(_paths.join(path)))
        if name in names:
            raise StructureMismatchError(
                where,
                unexpected=[_paths.join(names[name]), _paths.join(path)],
                fix=f"rename= gives both the name {_paths.join(name)!r}; each needs one of its own.",
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
    return lambda name: _substituted(name, rename)


def _substituted(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


def _compatible(stored: Any, wanted: Any) -> bool:
    """The same shape and dtype; a Python number fits any scalar, since Flax starts steps as one."""
    if isinstance(wanted, (int, float)) or isinstance(stored, (int, float)):
        return getattr(stored, "shape", ()) == getattr(wanted, "shape", ()) == ()
    return not _paths.diff({(): stored}, {(): wanted})


def placement(stored: Any, wanted: Any) -> Any:
    """What Orbax is asked for: the stored shape and dtype, placed as the wanted leaf is."""
    if not hasattr(stored, "shape"):
        return stored
    sharding = getattr(wanted, "sharding", None)
    if sharding is None:  # never left open: Orbax would want the devices of the writer
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
