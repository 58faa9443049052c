"""Per-variable settings of an optimizer: learning rate, decay, group, rule."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.keras_internals.keys import contents
from keras_flax_bridge.keras_internals.values import holds_value
from keras_flax_bridge.startup import compat


def learning_rate(optimizer: Any) -> Any:
    """The variable that holds the learning rate, or the schedule or function that gives it."""
    return optimizer._learning_rate  # the public `learning_rate` is the current value


def number(variable: Any) -> float | None:
    """The value of a scalar variable; None if it was moved or is traced."""
    return float(variable.value) if holds_value(variable) else None


def built_for(optimizer: Any) -> list[Any]:
    """The variables an optimizer was built for, in order; none for one that isn't built."""
    return list(optimizer._trainable_variables) if optimizer.built else []


def keeps(optimizer: Any, attribute: str) -> bool:
    """Whether the value of an attribute of a built optimizer is one of its variables."""
    known = {id(variable) for variable in optimizer.variables}
    found = contents((), getattr(optimizer, attribute, None)) if optimizer.built else ()
    return optimizer.built and all(id(variable) in known for _, variable in found)


def is_overwritten(variable: Any) -> bool:
    """Whether gradients replace a variable, as the scales of float8 training are."""
    return getattr(variable, "overwrite_with_gradient", False)


def is_decayed(optimizer: Any, variable: Any) -> bool:
    """Whether weight decay applies to a variable, or to anything with a variable's name."""
    # `_use_weight_decay`: no public method or config has what exclude_from_weight_decay was given
    answer: bool = optimizer._use_weight_decay(variable)
    if variable.__class__ is NamedLeaf:  # kept by id, which another object may have tomorrow
        optimizer._exclude_from_weight_decay_cache.pop(id(variable), None)
    return answer


def takes_adam(muon: Any, variable: Any) -> bool:
    """Whether Muon updates a variable by Adam."""
    answer: bool = muon._should_use_adamw(variable)  # there is no public form of its rule on shapes and paths
    return answer


def is_multi(optimizer: Any) -> bool:
    """Whether an optimizer has others for groups of variables."""
    return isinstance(optimizer, compat.kinds("MultiOptimizer"))


def group_of(multi: Any, variable: Any) -> int:
    """The optimizer of a MultiOptimizer that has a variable."""
    # `_var_to_optimizer_idx`, `_optimizer_map`: who gets what, after and before it is built
    indices: dict[int, int] = getattr(multi, "_var_to_optimizer_idx", {})
    if id(variable) in indices:
        return indices[id(variable)]
    optimizers: list[Any] = multi.optimizers
    return optimizers.index(multi._optimizer_map(variable))


class NamedLeaf:
    """Stands in for a variable: the name and shape of a leaf."""

    constraint = None

    def __init__(self, path: tuple[str, ...], shape: tuple[int, ...]):
        self.name, self.path, self.shape = path[-1] if path else "", "/".join(path), shape
