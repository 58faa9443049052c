"""Structural keys: the place of every variable in a layer, whatever Keras named it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case

from keras_flax_bridge.errors import UnsupportedLayerError
from keras_flax_bridge.keras_internals.entries import (
    BATCH_STAT,
    FROZEN,
    OTHER,
    PARAM,
    SEED,
    UNTRACKED,
    Collection,
    Entry,
)
from keras_flax_bridge.tree.paths import Path


def collect_layer(layer: Any) -> tuple[Collection, Collection]:
    """The trainable and the non-trainable variables of a layer, in Keras's order."""
    return _in_order(layer, _walk(layer, (), set()))


def collect_state(layer: Any) -> tuple[Collection, Collection]:
    """As `collect_layer`, and with the variables that Keras doesn't track, such as states of RNNs.

    Keras's own functions on JAX lose updates of such variables.
    """
    entries = list(_walk(layer, (), set(), untracked=True))
    tracked = [entry for entry in entries if entry.kind != UNTRACKED]
    params, non_trainable = _in_order(layer, tracked)
    known = {id(entry.variable) for entry in tracked}
    rest = {id(entry.variable): entry for entry in entries if id(entry.variable) not in known}
    return params, non_trainable + rest.values()


def _in_order(layer: Any, entries: Iterable[Entry]) -> tuple[Collection, Collection]:
    found = {id(entry.variable): entry for entry in entries}
    trainable = [_known(found, v)._replace(kind=PARAM) for v in layer.trainable_variables]
    return Collection(trainable), Collection(_known(found, v) for v in layer.non_trainable_variables)


def _known(found: Mapping[int, Entry], variable: Any) -> Entry:
    if id(variable) in found:
        return found[id(variable)]
    raise UnsupportedLayerError(
        variable.path,
        got="a variable that no attribute of a layer and no tracked list of Keras holds",
        expected="a variable held by a layer",
        fix="Assign it, or the layer that owns it, to an attribute of the layer that uses it.",
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


def _walk(layer: Any, path: Path, seen: set[int], *, untracked: bool = False) -> Iterator[Entry]:
    """Entries of a layer and of all its sublayers, each variable once, at its first place.

    With `untracked`, then also the variables that attributes alone hold, even if they are another's.
    """
    _require_arrays(layer)
    seen.add(id(layer))
    attributes, names = held_by(layer, _layer_bookkeeping()), Names()
    children = list(_children(layer, attributes, names))  # they keep their names; leaves give way
    placed = layer.placed_variables() if hasattr(layer, "placed_variables") else {}
    for variable, kind in _own_variables(layer):
        if id(variable) not in seen:
            seen.add(id(variable))
            place, own = placed.get(id(variable), (None, None))
            place = place or variable_name(variable, attributes, names)
            yield Entry((*path, *place), variable, own or kind)
    for variable in _held_variables(layer, seen) if untracked else ():
        yield Entry((*path, *variable_name(variable, attributes, names)), variable, UNTRACKED)
    for name, child in children:
        if id(child) not in seen:
            yield from _walk(child, (*path, *name), seen, untracked=untracked)


def _require_arrays(layer: Any) -> None:
    if hasattr(layer, "save_assets"):  # values that Keras layers store outside of variables
        raise UnsupportedLayerError(
            f"layer {layer.name!r}",
            got=f"a {type(layer).__name__}, which keeps state that is not an array (it has save_assets)",
            expected="state in variables",
            fix="Move the layer out of the model into the data pipeline.",
        )


def _own_variables(layer: Any) -> Iterator[tuple[Any, str]]:
    # `_trainable_variables`, `_non_trainable_variables`, `_seed_generators`: what a layer itself
    # holds; the public lists mix in the sublayers and lose who created a frozen weight trainable
    for variable in layer._trainable_variables:
        yield variable, FROZEN
    for variable in layer._non_trainable_variables:
        yield variable, BATCH_STAT if variable.name.startswith("moving_") else OTHER
    for generator in layer._seed_generators:
        yield generator.state, SEED


def _held_variables(layer: Any, known: set[int]) -> Iterator[Any]:
    for name in public_first(vars(layer).keys() - _layer_bookkeeping()):
        for _, item in contents((name,), vars(layer)[name]):
            if isinstance(item, keras.Variable) and id(item) not in known:
                yield item


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
            yield from contents((*path, str(key)), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from contents((*path, str(index)), item)
