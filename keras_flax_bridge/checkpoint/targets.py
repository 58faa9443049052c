"""Targets of a restore: their leaves by path, and how values are assigned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.transfer import receivers
from keras_flax_bridge.state.trees import COLLECTIONS
from keras_flax_bridge.tree.paths import Flat, Path, fill_tree, flatten_tree


class Target(NamedTuple):
    """The target of a restore: the leaves to restore, and how they are assigned."""

    wanted: Flat
    scope: frozenset[Path] | None  # the stored subtrees that must be used up; None for everything
    put: Callable[[Flat], Any]
    of_weights: bool = True  # whether the meaning of the first names is known
    optional: frozenset[Path] = frozenset()  # wanted, and left as they are where nothing is stored
    ignored: frozenset[Path] = frozenset()  # structural keys that have no place in it


def target_of(like: Any, *, tops: Iterable[str] = trees.WEIGHTS, weights: Any = None) -> Target:
    """The target for `like`.

    Args:
        like: a `keras.Model` or an `nnx.Module`, a dict of either, an `nnx.State`, or a pytree of arrays or
            `jax.ShapeDtypeStruct`.
        tops: the first names in the checkpoint: where they are those of a state, so are `like`'s.
        weights: a `WeightMap` between the variables of a Keras model and those of a Flax model.
    """
    weights = getattr(type(like), "weight_map", None) if weights is None else weights
    if weights is not None:
        return _mapped_target(like, weights, _weights(tops))
    for kind, target in ((keras.layers.Layer, _keras_target), (nnx.Module, _nnx_target)):
        if isinstance(like, kind):
            return target(like, {(): like}, _weights(tops))
        if _are_all(like, kind):
            return target(like, {(name,): one for name, one in like.items()}, _weights(tops))
    flat = flatten_tree(trees.without_unsaved(like))
    places = unboxed(flat)
    leaves = {name: flat[place] for name, place in places.items()}
    if isinstance(like, nnx.State):
        places = {("params", *name): place for name, place in places.items()}
        leaves = {("params", *name): leaf for name, leaf in leaves.items()}
    if () in leaves:
        raise StructureMismatchError(
            "like",
            got=f"a {type(like).__name__}",
            expected="a TrainState, a keras.Model, an nnx.Module, or a tree of arrays",
            fix="Pass the object to restore the checkpoint into.",
        )
    found = {path[0] for path in leaves}
    plain = isinstance(like, Mapping) and found <= COLLECTIONS and "params" in tops
    of_weights = plain or isinstance(like, nnx.State)

    def put(values: Flat) -> Any:
        return fill_tree(like, {places[path]: value for path, value in values.items()})

    return Target(leaves, _weights(tops) if of_weights else None, put, of_weights)


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
    return Target(wanted, frozenset(places) | weights, put)


def _nnx_target(like: Any, modules: Mapping[Path, nnx.Module], weights: frozenset[Path]) -> Target:
    """The variables of some modules, each below its name in every tree."""
    named = {
        ("params", *prefix, *path): variable
        for prefix, module in modules.items()
        for path, variable in _nnx_variables(module).items()
    }

    def put(values: Flat) -> Any:
        for path, value in values.items():
            named[path].set_value(value)
        return like

    # the states of RNNs: Keras doesn't track them, so that a TrainState lacks them
    optional = frozenset(path for path, v in named.items() if v.get_metadata().get("optional"))
    return Target({p: v.get_value() for p, v in named.items()}, weights, put, optional=optional)


def _nnx_variables(module: Any) -> dict[Path, nnx.Variable[Any]]:
    if hasattr(module, "variables_by_path"):  # ToNNX maps attributes to structural keys
        variables: dict[Path, nnx.Variable[Any]] = module.variables_by_path()
        return variables
    return {tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(module))}


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
