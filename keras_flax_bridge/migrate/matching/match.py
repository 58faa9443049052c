"""Aligns a Keras model with an existing Flax model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, permutations, product
from typing import Any, NamedTuple

import jax
import keras
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError, printable
from keras_flax_bridge.migrate.convert import Conversion, abstract
from keras_flax_bridge.migrate.map_schema import Pair
from keras_flax_bridge.migrate.matching.alignment import (
    Group,
    assign,
    counterpart,
    fit,
    grouped,
    likeness,
    linen_leaves,
    nnx_leaves,
    unfused,
)
from keras_flax_bridge.migrate.selfcheck import difference, tolerance_of
from keras_flax_bridge.migrate.transforms import Merge, Reshape, Split, Transform, Transpose
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree, join_path
from keras_flax_bridge.tree.types import Batch, PyTree

log = logging.getLogger("keras_flax_bridge")

TRIES = 200  # alignments that a sample decides between
SETTINGS = ("epsilon", "momentum", "strides", "padding", "kernel_dilation", "feature_group_count", "axis")
Pairs = list[tuple[Group, Group]]


class Ours(NamedTuple):
    """The native form of the Keras model by the rules, which is matched against the target."""

    groups: list[Group]
    weights: dict[Path, Pair]  # the variable behind every native path
    modules: Any
    seeds: tuple[Path, ...]


@words.door
def match(
    model: keras.Model,
    target: PyTree,
    *,
    sample: Batch | None = None,
    apply: Callable[..., Any] | None = None,
) -> WeightMap:
    """Finds the counterpart of every variable of a Keras model in a Flax model with other names.

    Layers are aligned by the shapes of their variables, up to reshapes, transposes, and query, key and
    value in one array; if several fit, by names and order. If that is ambiguous, both models run on
    `sample`. Without a sample, the notes of the map and the log say what is ambiguous.

    Args:
        model: a built Keras model.
        target: an `nnx.Module`, or Linen variables with ``params``.
        sample: a batch of inputs, in the structure that both take.
        apply: with Linen variables and a sample, the function ``apply(variables, x)``.

    Returns:
        A `WeightMap`. ``only_keras`` and ``only_flax`` name biases that only one model has; ``notes``
        list ambiguities, and settings that differ and change the outputs.

    Raises:
        NotBuiltError: if the model has no variables yet.
        StructureMismatchError: listing layers without a counterpart, on either side.
        UnsupportedLayerError: if the graph of the model can't be read.

    Example:
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.first = nnx.Linear(4, 3, rngs=rngs)
        ...         self.second = nnx.Linear(3, 2, rngs=rngs)
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        >>> print(match(model, Net(nnx.Rngs(0))).table())
        dense/kernel    ->  first/kernel
        dense/bias      ->  first/bias
        dense_1/kernel  ->  second/kernel
        dense_1/bias    ->  second/bias
    """
    linen = not isinstance(target, nnx.Module)
    if linen and not (isinstance(target, Mapping) and "params" in target):
        raise StructureMismatchError(
            "target",
            got=f"a {type(target).__name__}",
            expected="an nnx.Module, or Linen variables with 'params'",
            fix="Pass what linen_model.init(key, x) returns.",
        )
    ours = _ours(model)
    leaves = list(linen_leaves(target) if linen else nnx_leaves(target))
    theirs = grouped(leaves, (lambda path: path[1:-1]) if linen else (lambda path: path[:-1]))
    fused, left_ours, left_theirs = _fused(ours.groups, theirs)
    found = assign(left_ours, left_theirs)
    _require_all(left_ours, left_theirs, found)
    pairs = [(left_ours[i], left_theirs[j]) for i, j, _ in found]
    make = _Maker(model, ours, fused, [path for path, _ in leaves], linen)
    open_groups = list(_open(pairs))
    if sample is None:
        notes = [_open_note(group) for group in open_groups]
        for note in notes:
            log.warning("match: %s", printable(note))
        return make(pairs, [*notes, *_settings(pairs, ours, target)])
    return _by_numbers(make, pairs, open_groups, ours, target, sample, apply)


def _ours(model: Any) -> Ours:
    conversion = Conversion(model, "Model", "bridge", watch=True)
    weights = [w for w in conversion.source.weights if w.kind != "constant"]
    module = abstract(conversion.module_class())
    shapes = {tuple(map(str, p)): leaf.get_value().shape for p, leaf in nnx.to_flat_state(nnx.state(module))}
    behind = {path: Pair((w.key,), w.paths, w.transforms, w.kind) for w in weights for path in w.paths}
    leaves = [(path, tuple(shapes[path])) for w in weights for path in w.paths]
    return Ours(grouped(leaves), behind, module, conversion.weight_map().seeds)


def _fused(ours: list[Group], theirs: list[Group]) -> tuple[list[Any], list[Group], list[Group]]:
    """Query, key and value that the target holds in one array; and what is left on both sides."""
    found: list[tuple[list[Group], Group, dict[str, tuple[Any, ...]]]] = []
    for row, other, steps in unfused(ours, theirs):
        used = [group for earlier, one, _ in found for group in [*earlier, one]]
        if not any(group in used for group in [*row, other]):
            found.append((row, other, steps))
    taken = [group for row, other, _ in found for group in [*row, other]]
    return found, [g for g in ours if g not in taken], [g for g in theirs if g not in taken]


def _require_all(ours: list[Group], theirs: list[Group], found: list[Any]) -> None:
    """Every module has its counterpart.

    Raises:
        StructureMismatchError: listing those that have none.
    """
    rows, columns = {i for i, _, _ in found}, {j for _, j, _ in found}
    missing = [_said(g) for i, g in enumerate(ours) if i not in rows]
    unexpected = [_said(g) for j, g in enumerate(theirs) if j not in columns]
    if missing or unexpected:
        lines = [f"  only in Keras  {line}" for line in missing]
        lines += [f"  only in Flax   {line}" for line in unexpected]
        raise StructureMismatchError(
            "the two models",
            report=lines,
            missing=missing,
            unexpected=unexpected,
            fix="Modules are matched by their variables and shapes: these have no counterpart.",
        )


def _said(group: Group) -> str:
    return f"{join_path(group.path)} ({', '.join(f'{n} {list(s)}' for n, s in group.shapes.items())})"


def _open(pairs: Pairs) -> Iterator[list[int]]:
    """Positions of pairs that could be exchanged and that names do not distinguish."""
    alike: dict[Any, list[int]] = {}
    for i, (a, b) in enumerate(pairs):
        kind = (tuple(sorted(a.shapes.items())), tuple(sorted(b.shapes.items())))
        alike.setdefault(kind, []).append(i)
    for places in alike.values():
        if len(places) > 1 and not all(_named(pairs, i, places) for i in places):
            yield places


def _named(pairs: Pairs, i: int, places: list[int]) -> bool:
    """Whether the names of a pair are clearly more alike than those of any exchange."""
    a, b = pairs[i]
    own = likeness(a.path, b.path)
    others = [likeness(a.path, pairs[k][1].path) for k in places if k != i]
    return own == 1.0 or own > max(others) + 0.2


def _open_note(places: list[int]) -> str:
    return f"{len(places)} modules are indistinguishable and were paired in order; pass sample= to be certain"


class _Maker:
    """Makes the map of an alignment."""

    def __init__(self, model: Any, ours: Ours, fused: list[Any], paths: list[Path], linen: bool):
        self.model, self.ours, self.fused, self.paths, self.linen = model, ours, fused, paths, linen

    def __call__(self, pairs: Pairs, notes: list[str], flips: dict[int, Any] | None = None) -> WeightMap:
        moved: dict[Path, tuple[tuple[Path, ...], tuple[Transform, ...]]] = {}
        only_keras: list[Path] = []
        joined: list[Pair] = []
        for a, b in pairs:
            found = fit(a, b)
            assert found is not None
            for r, transforms in found.parts:
                moved[a.leaves[r]] = ((counterpart(r, b),), transforms)
        for row, other, steps in self.fused:
            for r, transforms in steps.items():
                members = [self.ours.weights[group.leaves[r]] for group in row]
                keys = tuple(key for pair in members for key in pair.keras)
                joined.append(Pair(keys, (other.leaves[r],), _back(transforms), members[0].kind))
                moved |= {group.leaves[r]: ((), ()) for group in row}
        made: list[Pair] = []
        for pair in dict.fromkeys(self.ours.weights.values()):
            where = [moved.get(path) for path in pair.flax]
            if any(place is None for place in where):
                only_keras += pair.keras
            elif len(pair.flax) == 1 and where[0] and where[0][0]:
                made.append(pair._replace(flax=where[0][0], transforms=(*pair.transforms, *where[0][1])))
            elif all(place and place[0] and not place[1] for place in where):
                made.append(pair._replace(flax=tuple(place[0][0] for place in where if place)))
        used = {path for pair in [*made, *joined] for path in pair.flax}
        return WeightMap(
            [*made, *joined],
            seeds=self.ours.seeds,
            only_keras=only_keras,
            only_flax=[path for path in self.paths if path not in used],
            notes=notes,
            linen=self.linen,
            model=self.model,
        )


def _back(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """The inverse transforms."""
    undone: list[Transform] = []
    for transform in reversed(transforms):
        if isinstance(transform, Split):
            undone.append(Merge(*transform))
        elif isinstance(transform, Reshape):
            undone.append(Reshape(transform.after, transform.before))
        elif isinstance(transform, Transpose):
            undone.append(Transpose(tuple(transform.axes.index(i) for i in range(len(transform.axes)))))
    return tuple(undone)


def _settings(pairs: Pairs, ours: Ours, target: Any) -> list[str]:
    """Settings of modules that differ and change their outputs."""
    if not isinstance(target, nnx.Module):
        return []
    own = {tuple(map(str, path)): m for path, m in nnx.iter_modules(ours.modules)}
    others = {tuple(map(str, path)): m for path, m in nnx.iter_modules(target)}
    notes = []
    for a, b in pairs:
        mine, other = own.get(a.path), others.get(b.path)
        for name in SETTINGS:
            wanted, got = getattr(mine, name, None), getattr(other, name, None)
            if wanted is not None and got is not None and not _equal(wanted, got):
                notes.append(f"{name} of {join_path(b.path)} is {got}, Keras's is {wanted}")
    return notes


def _equal(a: Any, b: Any) -> bool:
    def plain(value: Any) -> Any:
        value = tuple(value) if isinstance(value, list) else value
        return value[0] if isinstance(value, tuple) and len(set(map(str, value))) == 1 else value

    return bool(plain(a) == plain(b))


def _by_numbers(
    make: _Maker,
    pairs: Pairs,
    open_groups: list[list[int]],
    ours: Ours,
    target: Any,
    sample: Any,
    apply: Callable[..., Any] | None,
) -> WeightMap:
    """The alignment with which both models give the same outputs on a sample."""
    model, limit = make.model, tolerance_of(make.model)
    wanted = model(sample, training=False)
    best: tuple[float, WeightMap, Pairs] | None = None
    for candidate in islice(_exchanges(pairs, open_groups), TRIES):
        wmap = make(candidate, [])
        measured = difference(_run(target, wmap, sample, apply), wanted)
        if best is None or measured < best[0]:
            best = measured, wmap, candidate
        if measured <= limit:
            break
    assert best is not None
    measured, _, chosen = best
    notes = _settings(chosen, ours, target)
    if not measured <= limit:
        notes.append(
            f"on the sample the outputs differ by {measured:.1e}, relative to the largest: a setting "
            "differs, such as an epsilon, the padding, or the kind of gelu, or the order of layers"
        )
    return make(chosen, notes)


def _exchanges(pairs: Pairs, open_groups: list[list[int]]) -> Iterator[Pairs]:
    """The pairs, then the other orders of indistinguishable modules."""
    for orders in product(*(permutations(places) for places in open_groups)):
        changed = list(pairs)
        for places, order in zip(open_groups, orders, strict=True):
            for place, source in zip(places, order, strict=True):
                changed[place] = (pairs[place][0], pairs[source][1])
        yield changed


def _run(target: Any, wmap: WeightMap, sample: Any, apply: Callable[..., Any] | None) -> Any:
    values = flatten_tree(wmap.to_flax())
    if isinstance(target, nnx.Module):
        module = nnx.clone(target)
        wmap.put(module, values)
        module.eval()
        return jax.tree.leaves(module(sample))
    if apply is None:
        raise StructureMismatchError(
            "apply",
            got="none",
            expected="the function that applies the variables",
            fix="Pass apply=model.apply.",
        )
    return jax.tree.leaves(apply(fill_tree(target, values), sample))
