"""Variables of optimizers: scalars by name, slots as trees shaped like the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_flax_bridge._paths import Path
from keras_flax_bridge._variables.entries import OTHER, Entry
from keras_flax_bridge._variables.keys import Names, contents, public_first, variable_name


def optimizer_entries(optimizer: Any, keys: Mapping[int, Path]) -> list[Entry]:
    """Variables of an optimizer in Keras's order: scalars by name, slots as trees like params."""
    found: dict[int, Path] = {}
    _place_slots(optimizer, (), keys, found)
    names = Names()
    for variable in optimizer.variables:  # what a custom optimizer keeps in no attribute
        if id(variable) not in found:
            found[id(variable)] = ("variables", names.take("variable"))
    return [Entry(found[id(v)], v, OTHER) for v in optimizer.variables]


# what an optimizer keeps about the model and about itself besides its slots
_NO_SLOTS = frozenset({"_variables", "_trainable_variables", "_trainable_variables_indices", "_tracker"})


def _place_slots(optimizer: Any, prefix: Path, keys: Mapping[int, Path], found: dict[int, Path]) -> None:
    """Finds the path of every variable in an optimizer's attributes and inner optimizers."""
    names = Names()
    for name in public_first(vars(optimizer).keys() - _NO_SLOTS):
        value = _by_owner(vars(optimizer)[name], optimizer)
        if _is_slot(value, optimizer):
            slot = (*prefix, *names.place((name,)))
            for variable, owner in zip(value, optimizer._trainable_variables, strict=True):
                if variable is not None:
                    found.setdefault(id(variable), (*slot, *keys.get(id(owner), (owner.path,))))
            continue
        for path, item in contents((name,), value):
            if isinstance(item, keras.optimizers.Optimizer):
                _place_slots(item, (*prefix, *names.place(path)), keys, found)
            elif isinstance(item, keras.Variable) and id(item) not in found:
                found[id(item)] = (*prefix, *variable_name(item, {id(item): path}, names))


def _by_owner(value: Any, optimizer: Any) -> Any:
    """A dict from the paths of the trained variables to slots as a list in their order."""
    paths = [variable.path for variable in optimizer._trainable_variables]
    if not isinstance(value, Mapping) or not value or not value.keys() <= set(paths):
        return value
    return [value.get(path) for path in paths]


def _is_slot(value: Any, optimizer: Any) -> bool:
    """Whether a list holds one variable, or none, for each variable that the optimizer trains."""
    # `_trainable_variables`: the variables an optimizer was built for, in order; nothing public has them
    return (
        isinstance(value, (list, tuple))
        and len(value) == len(optimizer._trainable_variables)
        and any(isinstance(item, keras.Variable) for item in value)
        and all(item is None or isinstance(item, keras.Variable) for item in value)
    )


def iterations(optimizer: Any) -> Any:
    """How many batches an optimizer has seen, an int32 scalar."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # the outer one of a loss scale stands still
    return inner._iterations.value  # `_iterations`: the public one is divided by accumulation steps


def takes_up(new: Any, old: Any) -> bool:
    """Whether the slots of one Keras optimizer go on in another: the same rule, whatever its settings."""
    if type(new) is not type(old):
        return False
    inner = [getattr(optimizer, "inner_optimizer", None) for optimizer in (new, old)]
    return inner[0] is None or takes_up(*inner)


AVERAGES = "model_variables_moving_average"  # of the weights; Keras starts it with them, at iteration 0


def fresh_optimizer(optimizer: Any, variables: Sequence[Any]) -> Any:
    """An optimizer of the same config, built for these variables, its slots at their start."""
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(variables)
    return fresh
