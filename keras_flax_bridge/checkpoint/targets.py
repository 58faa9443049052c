"""Targets of a restore: their leaves by path, and how values are assigned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees, untracked
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.state.trees import COLLECTIONS
from keras_flax_bridge.tree.nodes import Leaf, filled, leaves_of, other_places
from keras_flax_bridge.tree.paths import Flat, Path


class Target(NamedTuple):
    """The target of a restore: the leaves to restore, and how they are assigned."""

    wanted: Flat
    scope: frozenset[Path] | None  # the stored subtrees that must be used up; None for everything
    put: Callable[[Flat], Any]
    of_weights: bool = True  # whether the meaning of the first names is known
    optional: Collection[Path] = frozenset()  # wanted, and left as they are where nothing is stored
    ignored: frozenset[Path] = frozenset()  # structural keys that have no place in it
    leaves: Mapping[Path, Leaf] = MappingProxyType({})  # of a tree, by name; see `forms`
    other_places: Callable[[], Collection[Path]] = frozenset  # of the variables that a tree has several times


def target_of(like: Any, *, tops: Iterable[str] = trees.WEIGHTS, weights: Any = None) -> Target:
    """The target for `like`.

    Args:
        like: a `keras.Model`, a dict of such, or a tree of arrays, `jax.ShapeDtypeStruct` and objects of NNX.
        tops: the first names in the checkpoint: where they are those of a state, so are `like`'s.
        weights: a `WeightMap` between the variables of a Keras model and those of a Flax model.
    """
    weights = getattr(type(like), "weight_map", None) if weights is None else weights
    if weights is not None:
        return _mapped_target(like, weights, _weights(tops))
    if isinstance(like, keras.layers.Layer):
        return _keras_target(like, {(): like}, _weights(tops))
    if _are_all(like, keras.layers.Layer):
        return _keras_target(like, {(name,): one for name, one in like.items()}, _weights(tops))
    return _tree_target(like, tops)


def root_of(like: Any) -> Path:
    """The names above those of a tree: weights of modules are below ``params``."""
    of_weights = isinstance(like, (nnx.Module, nnx.State, nnx.FlatState)) or _are_all(like, nnx.Module)
    return ("params",) if of_weights else ()


def _tree_target(like: Any, tops: Iterable[str]) -> Target:
    """The leaves of a tree, which may have objects of NNX in it."""
    root, of_models = root_of(like), "params" in tops and _are_linen(like)
    found = leaves_of(trees.without_unsaved(like))
    leaves = {_below_tree(leaf.path) if of_models else (*root, *leaf.path): leaf for leaf in found}
    wanted = {path: leaf.value for path, leaf in leaves.items()}
    if root in wanted:
        raise StructureMismatchError(
            "like",
            got=f"a {type(like).__name__}",
            expected="a TrainState, a keras.Model, an nnx.Module, or a tree of arrays",
            fix="Pass the object to restore the checkpoint into; put a single array into a dict.",
        )
    plain = isinstance(like, Mapping) and {path[0] for path in leaves} <= COLLECTIONS and "params" in tops
    of_weights = plain or bool(root)
    lacking = _Lacking(like, wanted)

    def put(values: Flat) -> Any:
        missing = wanted.keys() - values.keys()
        started = {p: untracked.start(lacking.entries[p], wanted[p]) for p in missing if p in lacking}
        return filled(like, {leaves[path].path: value for path, value in {**started, **values}.items()})

    scope = _weights(tops) if of_weights else None
    return Target(
        wanted,
        scope,
        put,
        of_weights,
        _optional(leaves) if root else lacking,
        leaves=leaves,
        other_places=lambda: other_places(like),
    )


def _are_linen(like: Any) -> bool:
    """Whether a tree is a dict of Linen variables, one for each of several models."""
    return _are_all(like, Mapping) and all({"params"} <= one.keys() <= COLLECTIONS for one in like.values())


def _below_tree(path: Path) -> Path:
    """The name of a leaf of a dict of models in the checkpoint of their state: the tree comes first."""
    model, tree, *rest = path
    return (tree, model, *rest)


def _optional(leaves: Mapping[Path, Leaf]) -> frozenset[Path]:
    """What Keras doesn't track, such as the states of RNNs: older checkpoints lack it."""
    variables = ((path, leaf.variable) for path, leaf in leaves.items() if leaf.variable is not None)
    return frozenset(path for path, variable in variables if variable.get_metadata().get("optional"))


class _Lacking:
    """The leaves that older checkpoints may lack and that can start anew; found when one is missing."""

    def __init__(self, like: Any, leaves: Flat):
        self._like, self._leaves = like, leaves

    @cached_property
    def entries(self) -> dict[Path, Any]:
        found = untracked.untracked(self._like).items()
        return {path: entry for path, entry in found if untracked.has_start(entry, self._leaves.get(path))}

    def __contains__(self, path: object) -> bool:
        return path in self.entries

    def __iter__(self) -> Iterator[Path]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def unboxed(paths: Iterable[Path]) -> dict[Path, Path]:
    """Paths by their names without the level ``value`` of `nnx.State`."""
    paths = list(paths)
    boxed = all(len(path) > 1 and path[-1] == "value" for path in paths)
    return {path[:-1] if boxed else path: path for path in paths}


def _weights(tops: Iterable[str]) -> frozenset[Path]:
    """The trees that a restore of weights must use completely: weights, and trees that no state has."""
    return subtrees(COLLECTIONS | (set(tops) - {*trees.names()}))


def subtrees(names: Iterable[str]) -> frozenset[Path]:
    """The paths of trees of a state."""
    return frozenset((name,) for name in names)


def _are_all(like: Any, kind: type) -> bool:
    values = like.values() if isinstance(like, Mapping) else ()
    return bool(values) and all(isinstance(value, kind) for value in values)


def _keras_target(like: Any, models: Mapping[Path, Any], weights: frozenset[Path]) -> Target:
    """The variables of some models, each below its name in every tree."""
    places = {
        (tree, *prefix): found for prefix, model in models.items() for tree, found in receivers(model).items()
    }
    entries = {(*place, *entry.path): entry for place, found in places.items() for entry in found}

    def put(values: Flat) -> Any:
        for path, value in values.items():
            entries[path].variable.assign(value)
        for model in models.values():
            keras_internals.refresh(model)
        return like

    wanted = {path: keras_internals.variable_spec(entry.variable) for path, entry in entries.items()}
    optional = frozenset(path for path, entry in entries.items() if not entry.tracked)
    return Target(wanted, frozenset(places) | weights, put, optional=optional)


def _mapped_target(like: Any, weights: Any, scope: frozenset[Path]) -> Target:
    """A Flax model that is filled from Keras's variables; or the reverse, if `like` is a Keras model."""
    seeds = frozenset((*weights.seeds, *weights.only_keras))
    if isinstance(like, keras.layers.Layer):
        specs = {
            entry.path: keras_internals.variable_spec(entry.variable)
            for c in keras_internals.collect_layer(like)
            for entry in c
        }
        names = {path: path if weights.linen else ("params", *path) for path in weights.flax_specs(specs)}
        wanted = {names[path]: spec for path, spec in weights.flax_specs(specs).items()}
        back = {name: path for path, name in names.items()}
        lacking = frozenset(path if weights.linen else ("params", *path) for path in weights.only_flax)
        return Target(
            wanted,
            scope,
            lambda values: weights.to_keras({back[p]: v for p, v in values.items()}, like=like),
            ignored=frozenset(path[1:] for path in lacking),
        )
    flat = weights.leaves(like)
    wanted = {("params", *key): leaf for key, leaf in weights.keras_values(flat)}

    def put(values: Flat) -> Any:
        return weights.put(like, dict(weights.flax_values({path[1:]: v for path, v in values.items()})))

    return Target(wanted, scope, put, ignored=seeds)
