"""Trees with objects of Flax in them: the names of their leaves, and how they are filled.

`KINDS` is a table of the nodes that jax doesn't open, or opens too far: an `nnx.Module` is an object with
variables, each at one place, and is filled in place; an `nnx.State` is a value, and filling it gives a new
one. Everything else is a tree of jax: dicts, lists, tuples, registered classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
from flax import nnx
from flax.core.meta import AxisMetadata

from keras_flax_bridge.tree.paths import Flat, Path, key_path

BOX = "value"  # the level that jax has below the name of a variable


class Leaf(NamedTuple):
    """One leaf of a tree.

    Attributes:
        path: its name.
        boxed: its name in what plain Orbax writes, with a level ``value`` below each variable.
        value: the array, or what else lies there.
        variable: the `nnx.Variable` that holds it, or None.
    """

    path: Path
    boxed: Path
    value: Any
    variable: Any = None


class Part(NamedTuple):
    """What lies inside of a node of one of the kinds; names as those of `Leaf`.

    Attributes:
        place: the object and the attribute of a leaf that is no variable.
    """

    path: Path
    boxed: Path
    node: Any
    variable: Any = None
    place: Any = None


class Kind(NamedTuple):
    """A kind of nodes.

    Attributes:
        name: what the documentation calls it.
        is_of: whether a node is of this kind.
        parts: what lies inside.
        filled: the node with other parts: itself, if it is filled in place, otherwise a new one.
    """

    name: str
    is_of: Callable[[Any], bool]
    parts: Callable[[Any], list[Part]]
    filled: Callable[[Any, list[Part], list[Any]], Any]


# --- variables and boxes


def value_of(variable: Any) -> Any:
    """The value of an `nnx.Variable` as it is stored: without its hooks, and out of its reference."""
    raw = variable.get_raw_value()
    return raw[...] if _is_reference(raw) else raw


def _is_reference(raw: Any) -> bool:
    return isinstance(raw, getattr(jax, "Ref", ()))


def _assign(variable: Any, value: Any) -> None:
    raw = variable.get_raw_value()
    if _is_reference(raw):
        raw[...] = value
    else:
        variable.set_raw_value(value)


def _set_variable(variable: Any, parts: list[Part], new: list[Any]) -> Any:
    if new[0] is not parts[0].node:
        _assign(variable, new[0])
    return variable


# --- objects


def _keyed(module: Any) -> list[Part]:
    """The variables of a wrapper of Keras layers, by structural key."""
    others = {id(v): _named(path) for path, v in nnx.to_flat_state(nnx.state(module))}
    return [Part(path, others.get(id(v), path), v) for path, v in module.variables_by_path().items()]


def _object_parts(node: Any) -> list[Part]:
    found = []
    for keys, leaf in nnx.to_flat_state(nnx.state(node)):
        owner, at = (None, 0) if _is_variable(leaf) else _owner(node, keys)
        place = None if owner is None else (id(owner), keys[at:])
        found.append(Part(_named(keys), _named(keys), leaf, place=place))
    return found


def _fill_object(node: Any, parts: list[Part], new: list[Any]) -> Any:
    """Variables are filled already; other leaves are attributes, or inside of containers that are."""
    if all(value is part.node for part, value in zip(parts, new, strict=True)):
        return node
    places = [path for path, _ in nnx.to_flat_state(nnx.state(node))]
    changed: dict[tuple[int, Any], tuple[Any, Any, Flat]] = {}
    for keys, part, value in zip(places, parts, new, strict=True):
        if value is not part.node:
            owner, at = _owner(node, keys)
            held: tuple[Any, Any, Flat] = (owner, _child(owner, keys[at]), {})
            changed.setdefault((id(owner), keys[at]), held)[2][_named(keys[at + 1 :])] = value
    for (_, key), (owner, child, values) in changed.items():
        _set_child(owner, key, filled(child, values))
    return node


def _owner(node: Any, keys: tuple[Any, ...]) -> tuple[Any, int]:
    """The innermost object on the way to a leaf, and the number of keys that lead to it."""
    owner, at = node, 0
    for i, key in enumerate(keys[:-1]):
        node = _child(node, key)
        if isinstance(node, nnx.Pytree):
            owner, at = node, i + 1
    return owner, at


def _child(node: Any, key: Any) -> Any:
    return node[key] if isinstance(key, int) or isinstance(node, Mapping) else getattr(node, key)


def _set_child(node: Any, key: Any, value: Any) -> None:
    if isinstance(key, int):
        node[key] = value
    else:
        setattr(node, key, nnx.data(value))


# --- states and boxes, which are values


def _held(name: Path, leaf: Any) -> Part:
    return Part(name, (*name, BOX), value_of(leaf), leaf) if _is_variable(leaf) else Part(name, name, leaf)


def _copied(leaf: Any, value: Any) -> Any:
    """The leaf of a state with another value: of a variable a copy, which nothing else holds."""
    return leaf.copy(value) if _is_variable(leaf) else value


def _state_parts(state: Any) -> list[Part]:
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_variable)[0]
    return [_held(key_path(keys), leaf) for keys, leaf in leaves]


def _new_state(state: Any, parts: list[Part], new: list[Any]) -> Any:
    leaves, treedef = jax.tree.flatten(state, is_leaf=_is_variable)
    return jax.tree.unflatten(treedef, map(_copied, leaves, new))


def _flat_parts(state: Any) -> list[Part]:
    return [_held(_named(path), leaf) for path, leaf in state]


def _new_flat(state: Any, parts: list[Part], new: list[Any]) -> Any:
    made = [(path, _copied(leaf, value)) for (path, leaf), value in zip(state, new, strict=True)]
    return nnx.FlatState(made, sort=False)


def _opened(box: Any) -> tuple[Any, Any]:
    return jax.tree.flatten(box, is_leaf=lambda node: node is not box)


def _box_parts(box: Any) -> list[Part]:
    (held,) = _opened(box)[0]
    return [Part((), (BOX,), held)]


def _new_box(box: Any, parts: list[Part], new: list[Any]) -> Any:
    return jax.tree.unflatten(_opened(box)[1], new)


# --- dataclasses that jax doesn't know


def _is_dataclass(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type) and jax.tree_util.all_leaves([node])


def _fields(node: Any) -> list[Part]:
    names = [field.name for field in dataclasses.fields(node) if hasattr(node, field.name)]
    return [Part((name,), (name,), getattr(node, name)) for name in names]


def _new_dataclass(node: Any, parts: list[Part], new: list[Any]) -> Any:
    if all(a is part.node for a, part in zip(new, parts, strict=True)):
        return node
    made = copy.copy(node)  # a constructor may want other arguments than its fields
    for part, value in zip(parts, new, strict=True):
        object.__setattr__(made, part.path[0], value)  # also of a frozen one
    return made


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


KINDS = (
    Kind("variable", _is_variable, lambda node: [Part((), (BOX,), value_of(node), node)], _set_variable),
    Kind("wrapper", lambda node: hasattr(type(node), "variables_by_path"), _keyed, lambda node, *_: node),
    Kind("object", lambda node: isinstance(node, nnx.Pytree), _object_parts, _fill_object),
    Kind("state", lambda node: isinstance(node, nnx.State), _state_parts, _new_state),
    Kind("flat state", lambda node: isinstance(node, nnx.FlatState), _flat_parts, _new_flat),
    Kind("box", lambda node: isinstance(node, AxisMetadata), _box_parts, _new_box),
    Kind("dataclass", _is_dataclass, _fields, _new_dataclass),
)


def kind_of(node: Any) -> Kind | None:
    """The kind of a node; None for what jax opens, and for leaves."""
    known = type(node)
    if known not in _KNOWN:
        _KNOWN[known] = next((kind for kind in KINDS if kind.is_of(node)), None)
    return _KNOWN[known]


_KNOWN: WeakKeyDictionary[type, Kind | None] = WeakKeyDictionary()  # a state has thousands of leaves


def _is_special(node: Any) -> bool:
    return kind_of(node) is not None


def _named(keys: Iterable[Any]) -> Path:
    return tuple(map(str, keys))


def leaves_of(tree: Any) -> list[Leaf]:
    """The leaves of a tree by name, in order; a variable that it has several times at its first place.

    >>> from flax import nnx
    >>> module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> [leaf.path for leaf in leaves_of({"model": module, "same": module, "step": 1})]
    [('model', 'bias'), ('model', 'kernel'), ('step',)]
    """
    return [*_leaves(Part((), (), tree), set())]


def _leaves(part: Part, seen: set[Any]) -> Iterator[Leaf]:
    for keys, node in jax.tree_util.tree_flatten_with_path(part.node, is_leaf=_is_special)[0]:
        name, kind = key_path(keys), kind_of(node)
        path, boxed = (*part.path, *name), (*part.boxed, *name)
        if kind is None:
            yield Leaf(path, boxed, node, part.variable)
        elif _is_first(node, seen):
            for inner in _new_parts(kind.parts(node), seen):
                below = inner._replace(path=(*path, *inner.path), boxed=(*boxed, *inner.boxed))
                yield from _leaves(below, seen)


def _new_parts(parts: Iterable[Part], seen: set[Any]) -> Iterator[Part]:
    """The parts that are not of an object that was there before."""
    for part in parts:
        if part.place is None or part.place not in seen:
            yield part
        seen.add(part.place)


def _is_first(node: Any, seen: set[Any]) -> bool:
    """Whether a node is no variable, or one that was not there before."""
    if not _is_variable(node):
        return True
    first = id(node) not in seen
    seen.add(id(node))
    return first


def filled(tree: Any, values: Mapping[Path, Any]) -> Any:
    """A tree with values in the place of leaves; those that `values` lacks stay.

    Variables and the objects that hold them are filled in place. A container is a new one, unless all
    that it holds was filled in place.

    >>> from flax import nnx
    >>> counter, like = nnx.Variable(0), [1, 2]
    >>> new = filled({"a": counter, "b": like}, {("a",): 5, ("b", "0"): 7})
    >>> new["a"] is counter, counter.get_value(), new["b"], like
    (True, 5, [7, 2], [1, 2])
    """
    return _filled(tree, (), values, set())


def _filled(tree: Any, path: Path, values: Mapping[Path, Any], seen: set[Any]) -> Any:
    found, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_special)
    new = [_new_node(node, (*path, *key_path(keys)), values, seen) for keys, node in found]
    if all(made is node for made, (_, node) in zip(new, found, strict=True)):
        return tree
    return jax.tree.unflatten(treedef, new)


def _new_node(node: Any, path: Path, values: Mapping[Path, Any], seen: set[Any]) -> Any:
    kind = kind_of(node)
    if kind is None:
        return values.get(path, node)
    if not _is_first(node, seen):
        return node
    parts = kind.parts(node)
    new = {id(part) for part in _new_parts(parts, seen)}
    made = [_filled(p.node, (*path, *p.path), values, seen) if id(p) in new else p.node for p in parts]
    return kind.filled(node, parts, made)


def other_places(tree: Any) -> set[Path]:
    """The further names that plain Orbax gives a variable which a tree has at several places."""
    try:
        found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    except RecursionError:  # a graph with cycles, which Orbax can't write as a tree
        return set()
    names = {id(leaf.variable): leaf.boxed for leaf in leaves_of(tree) if leaf.variable is not None}
    places = [((*key_path(keys), BOX), names.get(id(node))) for keys, node in found if _is_variable(node)]
    return {place for place, name in places if name not in (None, place)}
