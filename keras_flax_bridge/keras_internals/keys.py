"""Structural keys: the place of every variable in a layer, whatever Keras named it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import keras
from keras.src.utils.naming import to_snake_case

from keras_flax_bridge.errors import UnsupportedLayerError
from keras_flax_bridge.keras_internals.entries import (
    BATCH_STAT,
    FROZEN,
    OTHER,
    OVERWRITTEN,
    PARAM,
    SEED,
    UNTRACKED,
    Collection,
    Entry,
)
from keras_flax_bridge.keras_internals.held import PLAIN, held_variables
from keras_flax_bridge.tree.paths import Path


def collect_layer(layer: Any) -> tuple[Collection, Collection]:
    """The trainable and the non-trainable variables of a layer, in Keras's order.

    The variables that Keras doesn't track come last: the states of RNNs, and seeds and variables in plain
    objects. Keras's own functions on JAX lose updates of such variables; see `tracking`.
    """
    holders: list[_Holder] = []
    params, non_trainable = _in_order(layer, _walk(layer, (), set(), holders))
    known = {id(entry.variable) for entry in params + non_trainable}
    return params, non_trainable + _untracked(holders, known)


def collect_tracked(layer: Any) -> tuple[Collection, Collection]:
    """The trainable and the non-trainable variables that Keras lists for a layer, in its order."""
    return _in_order(layer, _walk(layer, (), set(), []))


def layers_by_path(layer: Any) -> dict[Path, Any]:
    """Every layer below a layer, itself at ``()``, by its structural key."""
    holders: list[_Holder] = []
    list(_walk(layer, (), set(), holders))
    return {holder.path: holder.layer for holder in holders}


def variables_within(layer: Any) -> list[tuple[Path, Any]]:
    """All variables of a layer with their paths; none of one whose state is not in variables."""
    try:
        return [(e.path, e.variable) for part in collect_tracked(layer) for e in part]
    except UnsupportedLayerError:
        return []


def _untracked(holders: Sequence[_Holder], known: set[int]) -> Iterator[Entry]:
    """The variables that layers hold and Keras has in no list, each at its first place."""
    walked = {id(holder.layer) for holder in holders}

    def in_others(layer: Any) -> list[tuple[Path, Any]]:
        return [] if id(layer) in walked else variables_within(layer)

    for path, layer, attributes, names in holders:
        for place, variable in held_variables(layer, _unread(layer), in_others):
            if id(variable) not in known:
                known.add(id(variable))
                is_own = id(variable) in attributes
                own = variable_name(variable, attributes, names) if is_own else names.place(place)
                yield untracked_entry((*path, *own), variable)


def _in_order(layer: Any, entries: Iterable[Entry]) -> tuple[Collection, Collection]:
    found = {id(entry.variable): entry for entry in entries}
    trainable = [_known(found, v)._replace(kind=_kind(v)) for v in layer.trainable_variables]
    return Collection(trainable), Collection(_known(found, v) for v in layer.non_trainable_variables)


def _kind(variable: Any) -> str:
    """The kind of a trainable variable."""
    return OVERWRITTEN if getattr(variable, "overwrite_with_gradient", False) else PARAM


def _known(found: Mapping[int, Entry], variable: Any) -> Entry:
    if id(variable) in found:
        return found[id(variable)]
    raise UnsupportedLayerError(
        variable.path,
        got="a variable that no attribute of a layer and no tracked list of Keras holds",
        expected="a variable held by a layer",
        fix="Assign it, or the layer that owns it, to an attribute of the layer that uses it.",
    )


# where models have what `compile` was given, and functions made of it
_COMPILED = frozenset(
    {"loss", "_compile_config", "_compile_loss", "_compile_metrics", "_loss_tracker"}
    | {"train_function", "test_function", "predict_function"}
)


class Names:
    """Hands out names under one parent, each once; a second one of a name gets ``_1``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._of_attribute: dict[str, str] = {}

    def take(self, name: str) -> str:
        """A name that no other was given yet."""
        free = name
        while free in self._taken:
            self._next[name] = self._next.get(name, 0) + 1
            free = f"{name}_{self._next[name]}"
        self._taken.add(free)
        return free

    def place(self, path: Path) -> Path:
        """The path of what an attribute holds: the attribute's name without leading underscores."""
        attribute = path[0]
        if attribute not in self._of_attribute:
            self._of_attribute[attribute] = self.take(attribute.lstrip("_") or attribute)
        return (self._of_attribute[attribute], *path[1:])


class _Holder(NamedTuple):
    """A layer, its path, the places in its attributes, and the names that are taken below it."""

    path: Path
    layer: Any
    attributes: Mapping[int, Path]
    names: Names


def _walk(layer: Any, path: Path, seen: set[int], holders: list[_Holder]) -> Iterator[Entry]:
    """Entries of a layer and of all its sublayers, each variable once, at its first place."""
    seen.add(id(layer))
    attributes, names = held_by(layer, _layer_bookkeeping()), Names()
    holders.append(_Holder(path, layer, attributes, names))
    children = list(_children(layer, attributes, names))  # they keep their names; leaves give way
    placed = layer.placed_variables() if hasattr(layer, "placed_variables") else {}
    for variable, kind in _own_variables(layer):
        if id(variable) not in seen:
            seen.add(id(variable))
            place, own = placed.get(id(variable), (None, None))
            place = place or variable_name(variable, attributes, names)
            yield Entry((*path, *place), variable, own or kind)
    for name, child in children:
        if id(child) not in seen:
            yield from _walk(child, (*path, *name), seen, holders)


def _own_variables(layer: Any) -> Iterator[tuple[Any, str]]:
    # `_trainable_variables`, `_non_trainable_variables`, `_seed_generators`: what a layer itself
    # holds; the public lists mix in the sublayers and lose who created a frozen weight trainable
    for variable in layer._trainable_variables:
        yield variable, FROZEN
    for variable in layer._non_trainable_variables:
        yield variable, BATCH_STAT if variable.name.startswith("moving_") else OTHER
    for generator in layer._seed_generators:
        yield generator.state, SEED


def _unread(layer: Any) -> frozenset[str]:
    """The attributes of a layer that are not its own state."""
    return _model_bookkeeping() if isinstance(layer, keras.Model) else _layer_bookkeeping()


def untracked_entry(path: Path, variable: Any) -> Entry:
    """The entry of a variable that Keras has in no list."""
    # the name that a SeedGenerator gives to its variable
    return Entry(path, variable, SEED if path[-1] == "seed_generator_state" else UNTRACKED, tracked=False)


def _children(layer: Any, attributes: Mapping[int, Path], names: Names) -> Iterator[tuple[Path, Any]]:
    """Sublayers with their names: layers of the graph first, then layers in attributes."""
    graph: Sequence[Any] = layer.layers if isinstance(layer, graph_classes()) else ()
    yield from graph_children(graph, names)
    # `_layers`: the sublayers that Keras tracks; the public `layers` exists on models only
    rest = {id(child): child for child in layer._layers}
    for child in graph:
        rest.pop(id(child), None)
    for key, path in attributes.items():
        if key in rest:
            yield names.place(path), rest.pop(key)
    for child in rest.values():
        yield (names.take(to_snake_case(type(child).__name__)),), child


@cache
def graph_classes() -> Any:
    """The classes of models that are a graph of layers."""
    from keras.src.models.functional import Functional  # keras does not export it

    return Functional, keras.Sequential


def graph_children(layers: Sequence[Any], names: Names) -> Iterator[tuple[Path, Any]]:
    """The user's name of each layer, else its class and its order among such layers."""
    given = {id(layer): names.take(layer.name) for layer in layers if not has_auto_name(layer)}
    for layer in layers:
        yield (given.get(id(layer)) or names.take(to_snake_case(type(layer).__name__)),), layer


def has_auto_name(named: Any) -> bool:
    """Whether a name is of the form that Keras gives, such as ``dense_3`` to a Dense layer.

    A model read from its config carries such names as if the user had given them, so the form
    decides and not who wrote it: a model and its clone get the same keys.
    """
    return _has_auto_form(named.name, to_snake_case(type(named).__name__))


def _has_auto_form(name: str, stem: str) -> bool:
    return re.fullmatch(re.escape(stem) + r"(_\d+)?", name) is not None


def variable_name(variable: Any, attributes: Mapping[int, Path], names: Names) -> Path:
    """The name of a variable; an unnamed variable has the name of the attribute that holds it."""
    if not _has_auto_form(variable.name, "variable"):
        return (names.take(variable.name),)
    if id(variable) in attributes:
        return names.place(attributes[id(variable)])
    return (names.take("variable"),)


@cache
def _layer_bookkeeping() -> frozenset[str]:
    """The attributes of every Keras layer, which hold no sublayers of users."""
    return frozenset(vars(keras.layers.Layer()))


@cache
def _model_bookkeeping() -> frozenset[str]:
    return _layer_bookkeeping() | _COMPILED


def held_by(holder: Any, skip: frozenset[str]) -> dict[int, Path]:
    """The first place of each layer and variable in an object, including lists and dicts."""
    found: dict[int, Path] = {}
    for name in public_first(vars(holder).keys() - skip):
        for path, value in contents((name,), vars(holder)[name]):
            found.setdefault(id(value), path)
    return found


def public_first(names: Iterable[str]) -> list[str]:
    """Names in order, names with a leading underscore last."""
    return sorted(names, key=lambda name: (name.startswith("_"), name))


def contents(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    """The layers, variables and optimizers in a value, with their paths."""
    if isinstance(value, (keras.layers.Layer, keras.Variable, keras.optimizers.Optimizer)):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if item.__class__ not in PLAIN:
                yield from contents((*path, str(key)), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if item.__class__ not in PLAIN:
                yield from contents((*path, str(index)), item)
