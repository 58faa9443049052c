"""Matches modules of two models by the roles and shapes of their variables, as an assignment problem."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keras_flax_bridge.migrate.transforms import Reshape, Split, Transform, Transpose
from keras_flax_bridge.tree.paths import Path, flatten_tree

Shape = tuple[int, ...]

ROLES = {
    "kernel": ("kernel", "weight", "w", "weights", "matrix"),
    "bias": ("bias", "b", "offset", "beta"),
    "scale": ("scale", "gamma", "g", "gain"),
    "mean": ("mean", "moving_mean", "running_mean"),
    "var": ("var", "variance", "moving_variance", "running_var"),
    "embedding": ("embedding", "embeddings", "table", "emb"),
}
MATRICES = ("kernel", "embedding")  # roles that libraries use for the same variable
OPTIONAL = ("bias",)
RESHAPED, TRANSPOSED, MISSING = 0.1, 0.3, 0.5  # costs of the differences between two modules
ORDER, NAMES = 0.05, 0.05  # weights of position and name, which only break ties
NO_MATCH = 1e6


class Group(NamedTuple):
    """The variables of one module."""

    path: Path
    leaves: Mapping[str, Path]  # by role
    shapes: Mapping[str, Shape]


class Fit(NamedTuple):
    """The cost and the transforms of matching two groups."""

    cost: float
    parts: tuple[tuple[str, tuple[Transform, ...]], ...]  # transforms by role


def role(name: str) -> str:
    """The role of a variable, such as ``kernel``, whatever its library calls it."""
    return next((found for found, names in ROLES.items() if name.lower() in names), name)


def grouped(leaves: Iterable[tuple[Path, Shape]], module: Any = lambda path: path[:-1]) -> list[Group]:
    """Groups leaves by module, in the order of their first leaf."""
    found: dict[Path, dict[str, tuple[Path, Shape]]] = {}
    for path, shape in leaves:
        found.setdefault(module(path), {})[role(path[-1])] = (path, shape)
    return [
        Group(place, {r: p for r, (p, _) in held.items()}, {r: s for r, (_, s) in held.items()})
        for place, held in found.items()
    ]


def nnx_leaves(module: nnx.Module) -> Iterator[tuple[Path, Shape]]:
    """Paths and shapes of a module's variables, in the order in which its constructor creates them."""
    flat = {tuple(map(str, p)): leaf for p, leaf in nnx.to_flat_state(nnx.state(module))}
    kept = {p: leaf for p, leaf in flat.items() if not isinstance(leaf, nnx.RngState)}
    order = {path: i for i, path in enumerate(_creation_order(module, (), set()))}
    for path in sorted(kept, key=lambda p: order.get(p, len(order))):
        yield path, tuple(kept[path].get_value().shape)


def _creation_order(node: Any, path: Path, seen: set[int]) -> Iterator[Path]:
    if id(node) in seen:
        return
    seen.add(id(node))
    items: Any = vars(node).items() if isinstance(node, nnx.Module) else ()
    if isinstance(node, (list, tuple, nnx.List)):
        items = ((str(i), item) for i, item in enumerate(node))
    elif isinstance(node, (dict, nnx.Dict)):
        items = ((str(k), item) for k, item in node.items())
    for name, value in items:
        if isinstance(value, nnx.Variable):
            yield (*path, str(name))
        elif isinstance(value, (nnx.Module, list, tuple, dict)):
            yield from _creation_order(value, (*path, str(name)), seen)


def linen_leaves(variables: Mapping[str, Any]) -> Iterator[tuple[Path, Shape]]:
    """Paths and shapes of Linen variables, with ``Dense_10`` after ``Dense_2``."""
    flat = flatten_tree(variables)
    for path in sorted(flat, key=lambda p: [_natural_key(name) for name in p[1:]]):
        yield path, tuple(flat[path].shape)


def _natural_key(name: str) -> tuple[Any, ...]:
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def fit(ours: Group, theirs: Group) -> Fit | None:
    """The transforms from the variables of one group to those of another; None if there are none."""
    parts: list[tuple[str, tuple[Transform, ...]]] = []
    cost = 0.0
    names = {r: _counterpart(r, theirs.shapes) for r in ours.shapes}
    for r, shape in ours.shapes.items():
        other = names[r]
        if other is None:
            if r not in OPTIONAL:
                return None
            cost += MISSING
            continue
        candidates = candidate_transforms(shape, theirs.shapes[other])
        if not candidates:
            return None
        price, transforms = candidates[0]
        cost += price
        parts.append((r, transforms))
    extra = set(theirs.shapes) - set(names.values())
    if extra - set(OPTIONAL):
        return None
    return Fit(cost + MISSING * len(extra), tuple(parts))


def _counterpart(r: str, shapes: Mapping[str, Shape]) -> str | None:
    names = MATRICES if r in MATRICES else (r,)
    return next((name for name in (r, *names) if name in shapes), None)


def counterpart(r: str, group: Group) -> Path:
    """The path of the variable of a group that has a role."""
    found = _counterpart(r, group.shapes)
    assert found is not None
    return group.leaves[found]


def candidate_transforms(before: Shape, after: Shape) -> list[tuple[float, tuple[Transform, ...]]]:
    """Candidate transforms of an array from one shape to another, cheapest first."""
    found: list[tuple[float, tuple[Transform, ...]]] = []
    if before == after:
        found.append((0.0, ()))
    elif _merges_to(before, after) or _merges_to(after, before):
        found.append((RESHAPED, (Reshape(before, after),)))
    if len(before) == len(after) > 1:
        layouts = [axes for axes in permutations(range(len(before))) if axes != tuple(range(len(before)))]
        fitting = [axes for axes in layouts if tuple(before[a] for a in axes) == after]
        fitting.sort(key=lambda axes: axes != _channels_first(len(before)))
        found += [(TRANSPOSED, (Transpose(axes),)) for axes in fitting]
    return found


def _channels_first(rank: int) -> tuple[int, ...]:
    """The axes that transpose a kernel to output channels, input channels, then the window."""
    return (rank - 1, rank - 2, *range(rank - 2))


def _merges_to(long: Shape, short: Shape) -> bool:
    """Whether merging consecutive axes of the first shape gives the second shape."""
    if math.prod(long) != math.prod(short) or len(long) <= len(short):
        return False
    sizes = list(long)
    for size in short:
        taken = 1
        while sizes and taken < size:
            taken *= sizes.pop(0)
        if taken != size:
            return False
    return all(size == 1 for size in sizes)


def similarity(a: Path, b: Path) -> float:
    """The similarity of two paths, from 0 to 1."""
    return SequenceMatcher(None, "/".join(a).lower(), "/".join(b).lower()).ratio()


def assign(ours: list[Group], theirs: list[Group]) -> list[tuple[int, int, Fit]]:
    """The pairs of groups with the smallest total cost."""
    fits = {(i, j): fit(a, b) for i, a in enumerate(ours) for j, b in enumerate(theirs)}
    costs = np.full((len(ours), max(len(theirs), 1)), NO_MATCH)
    for (i, j), found in fits.items():
        if found is not None:
            far = abs(i / len(ours) - j / len(theirs))
            alike = similarity(ours[i].path, theirs[j].path)
            costs[i, j] = found.cost + ORDER * far + NAMES * (1 - alike)
    rows, columns = linear_sum_assignment(costs)
    found_pairs = []
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        chosen = fits.get((i, j))
        if chosen is not None:
            found_pairs.append((i, j, chosen))
    return found_pairs


def find_fused(
    ours: list[Group], theirs: list[Group]
) -> Iterator[tuple[list[Group], Group, dict[str, tuple[Any, ...]]]]:
    """Finds three consecutive groups, such as query, key and value, that the target stores as one.

    Yields:
        The three groups, the fused group, and by role the transforms that split the fused array.
    """
    for i in range(len(ours) - 2):
        row = ours[i : i + 3]
        if any(group.shapes != row[0].shapes or "kernel" not in group.shapes for group in row):
            continue
        for other in theirs:
            steps = {r: _split_transforms(row[0].shapes[r], other.shapes.get(r, ())) for r in row[0].shapes}
            if all(step is not None for step in steps.values()):
                yield row, other, {r: step for r, step in steps.items() if step is not None}


def _split_transforms(part: Shape, whole: Shape) -> tuple[Transform, ...] | None:
    """The transforms that split a fused array: along its last axis, or along a separate axis of size 3."""
    is_bias = len(part) < 3 and len(whole) == 1
    width = math.prod(part) if is_bias else math.prod(part[1:])
    flat = (width,) if is_bias else (part[0], width)
    axis = len(flat) - 1
    if whole == (*flat[:-1], 3 * width):
        return (Split(axis, (width,) * 3), *_reshape_transforms(flat, part))
    apart = (
        (3, *part) if is_bias or (len(whole) == len(part) + 1 and whole[0] == 3) else (part[0], 3, *part[1:])
    )
    if whole == apart:
        at = apart.index(3)
        cut = (*apart[:at], 1, *apart[at + 1 :])
        return (Split(at, (1,) * 3), Reshape(cut, part))
    return None


def _reshape_transforms(before: Shape, after: Shape) -> tuple[Transform, ...]:
    return () if before == after else (Reshape(before, after),)
