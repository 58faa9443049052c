"""Variables of optimizers: scalars by name, slots as trees shaped like the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_flax_bridge.keras_internals.entries import OTHER, Entry
from keras_flax_bridge.keras_internals.keys import Names, contents, public_first, variable_name
from keras_flax_bridge.tree.paths import Path


def optimizer_entries(optimizer: Any, keys: Mapping[int, Path]) -> list[Entry]:
    """Variables of an optimizer in Keras's order: scalars by name, slots as trees like params."""
    found: dict[int, Path] = {}
    _place_slots(optimizer, (), keys, found)
    names = Names()
    for variable in optimizer.variables:  # state of a custom optimizer that is in no attribute
        if id(variable) not in found:
            found[id(variable)] = ("variables", names.take("variable"))
    return [Entry(found[id(v)], v, OTHER) for v in optimizer.variables]


# what an optimizer keeps about the model and about itself besides its slots
_NO_SLOTS = frozenset({"_variables", "_trainable_variables", "_trainable_variables_indices", "_tracker"})


def _place_slots(optimizer: Any, prefix: Path, keys: Mapping[int, Path], found: dict[int, Path]) -> None:
    """Finds the path of every variable in an optimizer's attributes and inner optimizers."""
    names = Names()
    for name in public_first(vars(optimizer).keys() - _NO_SLOTS):
        value = vars(optimizer)[name]
        slots = list(_slots(value, optimizer))
        if slots:
            attribute = names.place((name,))
            for inner, variable, owner in slots:
                place = (*prefix, *attribute, *inner, *keys.get(id(owner), (owner.path,)))
                found.setdefault(id(variable), place)
            continue
        for path, item in contents((name,), value):
            if isinstance(item, keras.optimizers.Optimizer):
                _place_slots(item, (*prefix, *names.place(path)), keys, found)
            elif isinstance(item, keras.Variable) and id(item) not in found:
                found[id(item)] = (*prefix, *variable_name(item, {id(item): path}, names))


def optimizer_parts(optimizer: Any) -> dict[Path, Any]:
    """An optimizer, under ``()``, and those inside of it by the attributes that hold them, each once."""
    return _parts(optimizer, set())


def _parts(optimizer: Any, seen: set[int]) -> dict[Path, Any]:
    seen.add(id(optimizer))
    found: dict[Path, Any] = {(): optimizer}
    names = Names()
    for name in public_first(vars(optimizer).keys() - _NO_SLOTS):
        for path, item in contents((name,), vars(optimizer)[name]):
            if isinstance(item, keras.optimizers.Optimizer) and id(item) not in seen:
                place = names.place(path)
                found |= {(*place, *inner): part for inner, part in _parts(item, seen).items()}
    return found


def _slots(value: Any, optimizer: Any) -> Iterator[tuple[Path, Any, Any]]:
    """The slots in a value: the path between attribute and weight, the slot, and its weight.

    A slot belongs to the weight whose place it has in a list as long as the optimizer's, or in a dict
    by path; such lists and dicts may be nested.
    """
    # `_trainable_variables`: the variables an optimizer was built for, in order; nothing public has them
    owners = optimizer._trainable_variables
    by_path = {variable.path: variable for variable in owners}
    if isinstance(value, Mapping) and value and value.keys() <= by_path.keys():
        pairs = [(by_path[path], item) for path, item in value.items()]
    elif isinstance(value, (list, tuple)) and len(value) == len(owners) and any(map(_variables, value)):
        pairs = list(zip(owners, value, strict=True))
    else:
        yield from _slots_within(value, optimizer)
        return
    for owner, item in pairs:
        for inner, variable in _variables(item):
            yield inner, variable, owner


def _slots_within(value: Any, optimizer: Any) -> Iterator[tuple[Path, Any, Any]]:
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        for inner, variable, owner in _slots(item, optimizer):
            yield (str(key), *inner), variable, owner


def _variables(value: Any) -> list[tuple[Path, Any]]:
    """The variables of one weight's slot, with their paths."""
    return [(path, item) for path, item in contents((), value) if isinstance(item, keras.Variable)]


def iterations(optimizer: Any) -> Any:
    """The number of batches that an optimizer has seen, an int32 scalar."""
    inner = getattr(
        optimizer, "inner_optimizer", optimizer
    )  # that of an outer LossScaleOptimizer does not advance
    return inner._iterations.value  # `_iterations`: the public one is divided by accumulation steps


def takes_up(new: Any, old: Any) -> bool:
    """Whether the slots of one Keras optimizer fit another: the same rule, whatever its settings."""
    if type(new) is not type(old):
        return False
    inner = [getattr(optimizer, "inner_optimizer", None) for optimizer in (new, old)]
    return inner[0] is None or takes_up(*inner)


AVERAGES = "model_variables_moving_average"  # of the weights; Keras starts it with them, at iteration 0
