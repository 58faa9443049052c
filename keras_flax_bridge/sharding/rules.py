"""The layout of each leaf on a mesh: rules match weights, and slots follow their weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from flax import linen, nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.paths import Flat, Path, compiled_pattern, fill_tree, flatten_tree, join_path

Rules = Sequence[tuple[str, PartitionSpec]] | Any  # or a keras LayoutMap, or None for Flax's metadata

EVERYWHERE = "everywhere"  # the text in place of a rule for leaves that no rule matches


class Layout(NamedTuple):
    """The layout of one leaf, and the rule that set it."""

    spec: PartitionSpec
    rule: str


def layouts(
    tree: Any, mesh: Mesh | AbstractMesh, rules: Rules, names: Mapping[Path, str]
) -> dict[Path, Layout]:
    """The layout of every leaf.

    Args:
        tree: a state, abstract or not, or any tree of weights.
        mesh: the devices.
        rules: pairs of regular expression and `PartitionSpec`, a `LayoutMap`, or None.
        names: Keras's own names of the weights by path, for a `LayoutMap`.

    Raises:
        StructureMismatchError: naming a rule that matches nothing, or all leaves that a spec doesn't fit.
    """
    flat = flatten_tree(tree)
    wanted = {path: trees.sharding_of(path) for path in flat}
    weights = {path: leaf for path, leaf in flat.items() if wanted[path] == trees.BY_RULES}
    found = _of_weights(tree, weights, rules, names)
    found = {path: layout for path, layout in found.items() if not _is_scalar(path, weights[path])}
    _require_fit({path: (flat[path], layout.spec) for path, layout in found.items()}, mesh)
    tails = {name: {path[1:]: path for path in weights if path[0] == name} for name in trees.WEIGHTS}
    following = [path for path in flat if wanted[path] == trees.WITH_WEIGHTS]
    owners = {path: _owner(path, tails[trees.followed_by(path)]) for path in following}
    for path, owner in owners.items():
        if owner in found and _shape(flat[owner]) == _shape(flat[path]):
            found[path] = found[owner]
    return {path: found.get(path, Layout(PartitionSpec(), EVERYWHERE)) for path in flat}


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with automatic axes, over which XLA partitions computations: Keras's layers need that."""
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return mesh if mesh.axis_types == types else Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def named_shardings(tree: Any, mesh: Mesh, found: Mapping[Path, Layout]) -> Any:
    """A tree of the structure of `tree`, with a `NamedSharding` for every leaf."""
    return fill_tree(tree, {path: NamedSharding(mesh, layout.spec) for path, layout in found.items()})


def _of_weights(tree: Any, weights: Flat, rules: Rules, names: Mapping[Path, str]) -> dict[Path, Layout]:
    if rules is None:
        return _of_metadata(tree)
    if isinstance(rules, keras.distribution.LayoutMap):
        return _of_layout_map(rules, weights, names)
    fix = "It is searched for in paths such as 'params/dense/kernel'."
    pairs = [(compiled_pattern(rule, "rules", fix), spec) for rule, spec in _pairs(rules)]
    found: dict[Path, Layout] = {}
    matched: set[str] = set()
    for path in weights:
        texts = (join_path(path), join_path(path[1:]))
        hits = [(p.pattern, spec) for p, spec in pairs if any(p.search(text) for text in texts)]
        matched.update(pattern for pattern, _ in hits)
        if hits:
            found[path] = Layout(hits[0][1], hits[0][0])
    _require_used([p.pattern for p, _ in pairs if p.pattern not in matched], weights)
    return found


def _pairs(rules: Any) -> list[tuple[str, PartitionSpec]]:
    allowed = isinstance(rules, (list, tuple)) and all(
        isinstance(rule, (list, tuple)) and len(rule) == 2 and isinstance(rule[1], PartitionSpec)
        for rule in rules
    )
    if not allowed:
        raise StructureMismatchError(
            "rules",
            got=f"a {type(rules).__name__}" if not isinstance(rules, (list, tuple)) else repr(rules)[:200],
            expected="pairs of regular expression and PartitionSpec, a keras.distribution.LayoutMap, or None",
            fix="Pass rules=[('kernel$', PartitionSpec(None, 'model'))].",
        )
    return list(rules)


def _require_used(unused: Iterable[str], weights: Iterable[Path]) -> None:
    for rule in unused:
        paths = [join_path(path) for path in weights]
        raise StructureMismatchError(
            f"rule {rule!r}",
            got="a rule that matches no leaf",
            expected="a regular expression that is found in the path of a weight",
            fix=f"Paths are {', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}.",
        )


def _of_layout_map(rules: Any, weights: Flat, names: Mapping[Path, str]) -> dict[Path, Layout]:
    """Looks up Keras's variable names in a `LayoutMap`, as Keras does."""
    found = {path: rules[names.get(path, join_path(path[1:]))] for path in weights}
    used = {id(layout) for layout in found.values()}
    _require_used([key for key, layout in rules.items() if id(layout) not in used], weights)
    return {
        path: Layout(PartitionSpec(*layout.axes), "LayoutMap")
        for path, layout in found.items()
        if layout is not None
    }


def _of_metadata(tree: Any) -> dict[Path, Layout]:
    """Reads the sharding metadata of Flax modules, in `linen.Partitioned` or in an `nnx.State`."""
    if isinstance(tree, nnx.State):
        specs: Any = nnx.get_partition_spec(tree)
    else:
        specs = linen.get_partition_spec(tree)
    leaves = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))[0]
    paths = list(flatten_tree(tree))
    if len(leaves) != len(paths) or not any(leaf for _, leaf in leaves):
        raise StructureMismatchError(
            "rules",
            got="None, and weights without sharding metadata",
            expected="rules, or weights with Flax's sharding metadata",
            fix="Pass rules=[('.*', PartitionSpec())] to replicate all of them.",
        )
    return {
        path: Layout(spec, "metadata")
        for path, (_, spec) in zip(paths, leaves, strict=True)
        if spec is not None
    }


def _is_scalar(path: Path, leaf: Any) -> bool:
    """Whether a leaf is of the kind that is never split: a scalar, or the state of a random generator."""
    is_key = jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key)
    return not _shape(leaf) or is_key or path[-1].startswith("seed_generator_state")


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _owner(path: Path, params: Mapping[Path, Path]) -> Path | None:
    """The weight of a slot: its path ends with the weight's path, in a state of several models too."""
    tails = [path[i:] for i in range(1, len(path))]
    tails += [(path[1], *path[i:]) for i in range(3, len(path))]
    return next((params[tail] for tail in tails if tail in params), None)


def _require_fit(leaves: Mapping[Path, tuple[Any, PartitionSpec]], mesh: Mesh | AbstractMesh) -> None:
    wrong = {path: _misfit(_shape(leaf), spec, mesh) for path, (leaf, spec) in leaves.items()}
    lines = [
        f"  {join_path(path)}  {spec_text(leaves[path][0])}  {leaves[path][1]}: {why}"
        for path, why in wrong.items()
        if why
    ]
    if lines:
        raise StructureMismatchError(
            "rules",
            got=f"specs that don't fit {len(lines)} leaves",
            expected="at most one entry for each axis of a leaf, and axes that the mesh's sizes divide",
            report=lines,
            mismatched=[join_path(path) for path, why in wrong.items() if why],
            fix=f"The mesh is {dict(mesh.shape)}. Put a rule for these leaves before the one that took them.",
        )


def _misfit(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> str:
    if len(spec) > len(shape):
        return f"{len(spec)} axes for {len(shape)}"
    unknown = [name for entry in spec for name in _axes(entry) if name not in mesh.shape]
    if unknown:
        return f"the mesh has no axis {unknown[0]!r}"
    pairs = zip(shape, axis_parts(spec, mesh.shape), strict=False)
    return next((f"{size} is not divided by {count}" for size, count in pairs if size % count), "")


def axis_parts(spec: PartitionSpec, sizes: Mapping[str, int]) -> list[int]:
    """The number of parts into which a spec splits each axis."""
    return [math.prod(sizes[name] for name in _axes(entry)) for entry in spec]


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a spec."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
