"""Finds the weight map between a Keras model and an existing Flax model."""

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
    find_fused,
    fit,
    grouped,
    linen_leaves,
    nnx_leaves,
    similarity,
)
from keras_flax_bridge.migrate.selfcheck import difference, tolerance_of
from keras_flax_bridge.migrate.transforms import Merge, Reshape, Split, Transform, Transpose
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree, join_path
from keras_flax_bridge.tree.types import Batch, PyTree

log = logging.getLogger("keras_flax_bridge")

TRIES = 200  # alignments that are compared on a sample
SETTINGS = ("epsilon", "momentum", "strides", "padding", "kernel_dilation", "feature_group_count", "axis")
Pairs = list[tuple[Group, Group]]


class Converted(NamedTuple):
    """The Keras model as converted by the rules; its native weights are matched with those of the target."""

    groups: list[Group]
    weights: dict[Path, Pair]  # by native path, the pair of its Keras variable
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

    Layers are matched by the shapes of their variables, up to reshapes, transposes, and a fused query, key
    and value; if several match, by names and order. If that is ambiguous, both models run on `sample`.
    Without a sample, ambiguities are logged and listed in the notes of the map.

    Args:
        model: a built Keras model.
        target: an `nnx.Module`, or Linen variables with ``params``.
        sample: a batch of inputs, in the structure that both models take.
        apply: with Linen variables and a sample, the function ``apply(variables, x)``.

    Returns:
        A `WeightMap`. ``only_keras`` and ``only_flax`` list biases that only one model has; ``notes``
        lists ambiguities, and settings that differ and change the outputs.

    Raises:
        NotBuiltError: if the model has no variables yet.
        StructureMismatchError: listing layers without a counterpart, on either side.
        UnsupportedLayerError: if the graph of the model can't be traced.

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
    ours = _converted(model)
    leaves = list(linen_leaves(target) if linen else nnx_leaves(target))
    theirs = grouped(leaves, (lambda path: path[1:-1]) if linen else (lambda path: path[:-1]))
    fused, left_ours, left_theirs = _match_fused(ours.groups, theirs)
    found = assign(left_ours, left_theirs)
    _require_all(left_ours, left_theirs, found)
    pairs = [(left_ours[i], left_theirs[j]) for i, j, _ in found]
    make = _MapBuilder(model, ours, fused, [path for path, _ in leaves], linen)
    ambiguous = list(_ambiguous(pairs))
    if sample is None:
        notes = [_ambiguity_note(group) for group in ambiguous]
        for note in notes:
            log.warning("match: %s", printable(note))
        return make(pairs, [*notes, *_setting_differences(pairs, ours, target)])
    return _by_outputs(make, pairs, ambiguous, ours, target, sample, apply)


def _converted(model: Any) -> Converted:
    conversion = Conversion(model, "Model", "bridge", layer_outputs=True)
    weights = [w for w in conversion.source.weights if w.kind != "constant"]
    module = abstract(conversion.module_class())
    shapes = {tuple(map(str, p)): leaf.get_value().shape for p, leaf in nnx.to_flat_state(nnx.state(module))}
    behind = {path: Pair((w.key,), w.paths, w.transforms, w.kind) for w in weights for path in w.paths}
    leaves = [(path, tuple(shapes[path])) for w in weights for path in w.paths]
    return Converted(grouped(leaves), behind, module, conversion.weight_map().seeds)


def _match_fused(ours: list[Group], theirs: list[Group]) -> tuple[list[Any], list[Group], list[Group]]:
    """Layers that the target stores as one fused array, and the other groups of both models."""
    found: list[tuple[list[Group], Group, dict[str, tuple[Any, ...]]]] = []
    for row, other, steps in find_fused(ours, theirs):
        used = [group for earlier, one, _ in found for group in [*earlier, one]]
        if not any(group in used for group in [*row, other]):
            found.append((row, other, steps))
    taken = [group for row, other, _ in found for group in [*row, other]]
    return found, [g for g in ours if g not in taken], [g for g in theirs if g not in taken]


def _require_all(ours: list[Group], theirs: list[Group], found: list[Any]) -> None:
    """Checks that every module has a counterpart.

    Raises:
        StructureMismatchError: listing the modules that have none.
    """
    rows, columns = {i for i, _, _ in found}, {j for _, j, _ in found}
    missing = [_description(g) for i, g in enumerate(ours) if i not in rows]
    unexpected = [_description(g) for j, g in enumerate(theirs) if j not in columns]
    if missing or unexpected:
        lines = [f"  only in Keras  {line}" for line in missing]
        lines += [f"  only in Flax   {line}" for line in unexpected]
        raise StructureMismatchError(
            "the two models",
            report=lines,
            missing=missing,
            unexpected=unexpected,
            fix="Modules are matched by the roles and shapes of their variables: change one of the models so "
            "that each of these has a counterpart.",
        )


def _description(group: Group) -> str:
    return f"{join_path(group.path)} ({', '.join(f'{n} {list(s)}' for n, s in group.shapes.items())})"


def _ambiguous(pairs: Pairs) -> Iterator[list[int]]:
    """Indices of pairs with equal shapes whose names do not determine the order."""
    alike: dict[Any, list[int]] = {}
    for i, (a, b) in enumerate(pairs):
        kind = (tuple(sorted(a.shapes.items())), tuple(sorted(b.shapes.items())))
        alike.setdefault(kind, []).append(i)
    for places in alike.values():
        if len(places) > 1 and not all(_is_decided_by_names(pairs, i, places) for i in places):
            yield places


def _is_decided_by_names(pairs: Pairs, i: int, places: list[int]) -> bool:
    """Whether the names of a pair are clearly more similar than those of any other pairing."""
    a, b = pairs[i]
    own = similarity(a.path, b.path)
    others = [similarity(a.path, pairs[k][1].path) for k in places if k != i]
    return own == 1.0 or own > max(others) + 0.2


def _ambiguity_note(places: list[int]) -> str:
    return f"{len(places)} modules are indistinguishable and were paired in order; pass sample= to decide"


class _MapBuilder:
    """Builds the weight map of an alignment."""

    def __init__(self, model: Any, ours: Converted, fused: list[Any], paths: list[Path], linen: bool):
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
                joined.append(Pair(keys, (other.leaves[r],), _inverse(transforms), members[0].kind))
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


def _inverse(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
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


def _setting_differences(pairs: Pairs, ours: Converted, target: Any) -> list[str]:
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


def _by_outputs(
    make: _MapBuilder,
    pairs: Pairs,
    ambiguous: list[list[int]],
    ours: Converted,
    target: Any,
    sample: Any,
    apply: Callable[..., Any] | None,
) -> WeightMap:
    """The weight map of the alignment whose outputs on the sample differ least."""
    model, limit = make.model, tolerance_of(make.model)
    wanted = model(sample, training=False)
    best: tuple[float, WeightMap, Pairs] | None = None
    for candidate in islice(_reorderings(pairs, ambiguous), TRIES):
        wmap = make(candidate, [])
        measured = difference(_run(target, wmap, sample, apply), wanted)
        if best is None or measured < best[0]:
            best = measured, wmap, candidate
        if measured <= limit:
            break
    assert best is not None
    measured, _, chosen = best
    notes = _setting_differences(chosen, ours, target)
    if not measured <= limit:
        notes.append(
            f"the outputs on the sample differ by {measured:.1e}, relative to the largest: the order of "
            "layers or a setting differs, such as epsilon, padding, or the approximation of gelu"
        )
    return make(chosen, notes)


def _reorderings(pairs: Pairs, ambiguous: list[list[int]]) -> Iterator[Pairs]:
    """The pairs as they are, then with other orders of indistinguishable modules."""
    for orders in product(*(permutations(places) for places in ambiguous)):
        changed = list(pairs)
        for places, order in zip(ambiguous, orders, strict=True):
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
            got="None",
            expected="a function of the variables and the batch, for a Linen target with a sample",
            fix="Pass apply=linen_model.apply.",
        )
    return jax.tree.leaves(apply(fill_tree(target, values), sample))
