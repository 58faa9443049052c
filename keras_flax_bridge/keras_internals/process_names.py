"""Maps the automatic names of one process to those of another.

Keras counts its automatic names up over a process: the layer that was ``dense`` there is ``dense_3``
here. Names that a user gave are compared as they are, automatic ones by their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import keras

from keras_flax_bridge.errors import NotBuiltError, StructureMismatchError
from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.keys import has_auto_name
from keras_flax_bridge.keras_internals.models import collect
from keras_flax_bridge.keras_internals.trainers import metrics_built
from keras_flax_bridge.tree.paths import Path, join_path

# how Keras's `get_state_tree` calls the trees, and we do
VARIABLE_TREES = {
    "trainable_variables": "params",
    "non_trainable_variables": "non_trainable",
    "optimizer_variables": "opt_state",
    "metrics_variables": "metrics",
}


def found_again(model: Any, stored: Iterable[Path]) -> dict[Path, Path]:
    """The path of each variable of a model in one of Keras's trees, by its structural path.

    Args:
        model: a built model, with its optimizer and metrics as far as they are to be found.
        stored: paths of the tree, such as ``("trainable_variables", "dense_3", "kernel")``.
    """
    theirs = {tree: {p[1:]: p for p in stored if p[0] == tree} for tree in VARIABLE_TREES}
    variables = collect(model, metrics=getattr(model, "compiled", False) and metrics_built(model))
    weights = {(tree, *e.path): e for tree in ("params", "non_trainable") for e in getattr(variables, tree)}
    both = {**theirs["non_trainable_variables"], **theirs["trainable_variables"]}  # it may be frozen since
    places = _weights(weights, both, _automatic(model))
    slots = {("opt_state", *entry.path): entry for entry in variables.opt_state}
    flat = {_flat(weights[name]): "_".join(place[1:]) for name, place in places.items()}
    renamed = {name: _slot_path(entry, flat) for name, entry in slots.items()}
    optimizers, metrics = theirs["optimizer_variables"], theirs["metrics_variables"]
    totals = {("metrics", *entry.path): entry for entry in variables.metrics}
    return {
        **places,
        **_matched(renamed, optimizers, _any_number),
        **_places(totals, metrics, _any_number),
    }


def found_by_path(model: Any, stored: Iterable[Path]) -> dict[Path, Path]:
    """The path of each variable of a model in a dictionary keyed by `variable.path`, by its structural path.

    Args:
        model: a built model, with its optimizer and metrics as far as they are to be found; or a layer.
        stored: the keys of the dictionary, such as ``("dense_3", "kernel")``, of all kinds of variables.

    Raises:
        StructureMismatchError: if variables of the model have the same path.
    """
    left = {path: path for path in stored}
    try:
        variables = collect(model, metrics=getattr(model, "compiled", False))
    except NotBuiltError:  # of a metric that has to see data first
        variables = collect(model, metrics=False)
    weights = {(tree, *e.path): e for tree in ("params", "non_trainable") for e in getattr(variables, tree)}
    found = _weights(weights, left, _automatic(model))
    _require_own(weights, found)
    flat = {_flat(weights[name]): "_".join(place) for name, place in found.items()}
    slots = {("opt_state", *entry.path): entry for entry in variables.opt_state}
    renamed = {name: _slot_path(entry, flat) for name, entry in slots.items()}
    totals = {("metrics", *entry.path): _keras_path(entry) for entry in variables.metrics}
    totals |= {("compiled", *entry.path): _keras_path(entry) for entry in variables.compiled}
    for own in (renamed, totals):
        taken = set(found.values())
        found |= _matched(own, {path: path for path in left if path not in taken}, _any_number)
    return found


def _require_own(entries: Mapping[Path, Entry], found: Mapping[Path, Path]) -> None:
    """Checks that no two variables are found at one place: a dictionary holds the value of one of them."""
    names: dict[Path, list[Path]] = {}
    for name, place in found.items():
        names.setdefault(place, []).append(name)
    twice = [name for several in names.values() if len(several) > 1 for name in several]
    if twice:
        raise StructureMismatchError(
            "keys='path'",
            got="variables of the model that have one path together",
            expected="a path for each: a dictionary holds the value of one of them",
            report=[f"  {join_path(name)}  {entries[name].variable.path}" for name in twice],
            mismatched=[join_path(name) for name in twice],
            fix="Give their layers different names, or restore the others with include=.",
        )


def _weights(entries: Mapping[Path, Entry], stored: Mapping[Path, Path], automatic: Any) -> dict[Path, Path]:
    """The paths of weights; Keras prefixes the model's own name or not, depending on how it was built."""
    own = {name: _keras_path(e) for name, e in entries.items()}
    tries = [
        _matched(_cut(own, a), {_without(p, b): place for p, place in stored.items()}, automatic)
        for a, b in ((0, 0), (1, 1), (0, 1), (1, 0))
    ]
    return max(tries, key=len)


def _cut(paths: Mapping[Path, Path], count: int) -> dict[Path, Path]:
    return {name: _without(path, count) for name, path in paths.items()}


def _without(path: Path, count: int) -> Path:
    """A path without the model's name; seeds have no prefix, and a variable keeps its layer."""
    return path[count:] if len(path) > 2 else path


def _places(entries: Mapping[Path, Entry], stored: Mapping[Path, Path], automatic: Any) -> dict[Path, Path]:
    return _matched({name: _keras_path(e) for name, e in entries.items()}, stored, automatic)


def _matched(own: Mapping[Path, Path], stored: Mapping[Path, Path], automatic: Any) -> dict[Path, Path]:
    pairs = dict(_paired(own.values(), stored, automatic))
    return {name: stored[pairs[path]] for name, path in own.items() if path in pairs}


def _keras_path(entry: Entry) -> Path:
    return tuple(entry.variable.path.split("/"))


def _flat(entry: Entry) -> str:
    return "_".join(_keras_path(entry))


def _slot_path(entry: Entry, flat: Mapping[str, str]) -> Path:
    """The path of a slot, with the name of its weight in the process that stored the tree.

    Keras calls the slot of ``dense/kernel`` ``dense_kernel_momentum``.
    """
    *parents, name = _keras_path(entry)
    weight = max((w for w in flat if name.startswith(f"{w}_")), key=len, default=None)
    return (*parents, name if weight is None else flat[weight] + name[len(weight) :])


def _automatic(model: Any) -> Callable[[str], bool]:
    """Whether a name is one that Keras gave to a layer of this model, or to a seed."""
    # `_flatten_layers`: the public `layers` are those of the first level
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Layer)]
    stems = {_stem(layer.name) for layer in layers if has_auto_name(layer)} | {"seed_generator"}
    return lambda name: _stem(name) in stems


def _any_number(name: str) -> bool:
    return True


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _order(name: str) -> int:
    return int(name[len(_stem(name)) + 1 :] or 0)


def _paired(
    own: Collection[Path], stored: Collection[Path], automatic: Callable[[str], bool]
) -> Iterator[tuple[Path, Path]]:
    """Each path with its stored counterpart, level by level."""
    ours, theirs = _tails(own), _tails(stored)
    for mine, other in _same_heads(ours, theirs, automatic):
        if () in ours[mine] and () in theirs[other]:
            yield (mine,), (other,)
        inner, outer = ([tail for tail in tails if tail] for tails in (ours[mine], theirs[other]))
        for left, right in _paired(inner, outer, automatic):
            yield (mine, *left), (other, *right)


def _tails(paths: Iterable[Path]) -> dict[str, list[Path]]:
    tails: dict[str, list[Path]] = {}
    for path in paths:
        tails.setdefault(path[0], []).append(path[1:])
    return tails


def _same_heads(
    ours: Collection[str], theirs: Collection[str], automatic: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    if set(ours) == set(theirs):
        yield from zip(ours, ours, strict=True)
        return
    given = [name for name in ours if not automatic(name) and name in theirs]
    yield from zip(given, given, strict=True)
    mine, others = _by_stem(set(ours) - set(given)), _by_stem(set(theirs) - set(given))
    for stem, names in mine.items():
        if automatic(stem) and len(names) == len(others.get(stem, ())):
            yield from zip(names, others[stem], strict=True)


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by their prefix, in the order of their numbers."""
    stems: dict[str, list[str]] = {}
    for name in sorted(names, key=_order):
        stems.setdefault(_stem(name), []).append(name)
    return stems
