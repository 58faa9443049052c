"""Copies of optimizers: the only place that rebuilds an optimizer.

A config has the arguments of the constructor. `rebuilt` copies everything else that affects an update:
exclusions from weight decay, learning rates that are objects, and which optimizers of a `MultiOptimizer`
are the same object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import keras

from keras_flax_bridge.errors import StructureMismatchError, UnsupportedOptimizerError
from keras_flax_bridge.keras_internals.entries import PARAM, Collection, Entry, variable_spec
from keras_flax_bridge.keras_internals.exclusions import copy_exclusions, excludes_variables
from keras_flax_bridge.keras_internals.optimizer_settings import built_for, learning_rate
from keras_flax_bridge.keras_internals.slots import optimizer_entries, optimizer_parts
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.paths import Flat, Path


def rebuilt(
    optimizer: Any,
    counterparts: Mapping[int, Any],
    *,
    values: Iterable[tuple[Any, Any]] = (),
    rate: Any = None,
) -> Any:
    """An optimizer of the same class, config and exclusions that is not built: it has no slots yet.

    Args:
        optimizer: a Keras optimizer; it is only read.
        counterparts: the variables that the new one will train, by the id of the corresponding variable
            of `optimizer`.
        values: pairs of a variable of `optimizer` and the value to read in its place, where its own moved.
        rate: the learning rate in place of the optimizer's, an object that Keras accepts; None for its own.
    """
    return _Copies(counterparts, list(values), rate).of(optimizer)


def rebuilt_alone(optimizer: Any) -> Any:
    """Like `rebuilt`, before its variables exist; call `match_exclusions` once they do.

    Raises:
        UnsupportedOptimizerError: if variables are excluded as objects that can't be identified.
    """
    for part in optimizer_parts(optimizer).values():
        if excludes_variables(part) and not optimizer.built:
            raise UnsupportedOptimizerError(
                f"optimizer {part.name!r}",
                got="variables of another model that are excluded from weight decay as objects",
                expected="exclusions by name, or an optimizer that was built for the variables of that model",
                fix="Call exclude_from_weight_decay(var_names=[...]), or compile the model with it "
                "in model_fn.",
            )
    return rebuilt(optimizer, {})


def match_exclusions(optimizer: Any, fresh: Any) -> None:
    """Gives a built optimizer the exclusions of another; the variables of both correspond in order.

    Raises:
        StructureMismatchError: if variables are excluded, and the two were built for different ones.
    """
    parts, copies = optimizer_parts(optimizer), optimizer_parts(fresh)
    if not any(map(excludes_variables, parts.values())):
        return
    old, new = built_for(optimizer), built_for(fresh)
    specs = [[variable_spec(variable) for variable in variables] for variables in (old, new)]
    if specs[0] != specs[1]:
        raise StructureMismatchError(
            f"optimizer {optimizer.name!r}",
            got="variables excluded from weight decay as objects, of a model with other trainable variables",
            expected="a model of the same architecture",
            fix="Call exclude_from_weight_decay(var_names=[...]).",
        )
    counterparts = {id(variable): other for variable, other in zip(old, new, strict=True)}
    for path, part in parts.items():
        copy_exclusions(part, copies[path], counterparts)


class _Copies:
    """Copies of optimizers; an optimizer that is referenced twice is copied once."""

    def __init__(self, counterparts: Mapping[int, Any], values: list[tuple[Any, Any]], rate: Any = None):
        self._counterparts, self._values, self._rate = counterparts, values, rate
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original, so that its id stays its own

    def of(self, optimizer: Any) -> Any:
        if id(optimizer) not in self._made:
            self._made[id(optimizer)] = optimizer, self._copy(optimizer)
        return self._made[id(optimizer)][1]

    def _copy(self, optimizer: Any) -> Any:
        for kind, copy in _BY_KIND.items():
            if isinstance(optimizer, kind):
                fresh = copy(optimizer, self._config(optimizer, _INSIDE[kind]), self.of)
                copy_exclusions(optimizer, fresh, self._counterparts)
                return fresh
        config = self._config(optimizer)
        rate = learning_rate(optimizer) if self._rate is None else self._rate
        if not isinstance(rate, keras.Variable):
            config["learning_rate"] = rate  # as an object, so that its class needs no registration
        fresh = type(optimizer).from_config(config)
        if _is_traced(rate):
            learning_rate(fresh)._value = rate._value  # as it is: assign() would compute with it
        copies = optimizer_parts(fresh)
        for path, part in optimizer_parts(optimizer).items():
            copy_exclusions(part, copies[path], self._counterparts)
        return fresh

    def _reads_no_rate(self, optimizer: Any) -> bool:
        """Whether the number in the learning rate isn't needed, or is none."""
        return self._rate is not None or _is_traced(learning_rate(optimizer))

    def _config(self, optimizer: Any, inside: str | None = None) -> dict[str, Any]:
        """The config, without parts that are passed on as objects, which Keras may be unable to serialize."""
        reader = object.__new__(type(optimizer))
        vars(reader).update(vars(optimizer))
        if inside is not None:
            vars(reader)[inside] = None
        elif not isinstance(learning_rate(optimizer), keras.Variable) or self._reads_no_rate(optimizer):
            vars(reader)["_learning_rate"] = 0.0
        with keras.StatelessScope(self._values) if self._values else contextlib.nullcontext():
            config: dict[str, Any] = reader.get_config()
            return config


def _is_traced(rate: Any) -> bool:
    """Whether a learning rate is a variable of an optimizer that was made inside a traced function."""
    return isinstance(rate, keras.Variable) and isinstance(rate._value, jax.core.Tracer)


def _loss_scale(optimizer: Any, config: dict[str, Any], again: Callable[[Any], Any]) -> Any:
    config.pop("inner_optimizer")
    return type(optimizer)(again(optimizer.inner_optimizer), **config)


def _multi(optimizer: Any, config: dict[str, Any], again: Callable[[Any], Any]) -> Any:
    # `_optimizer_map`: the argument of the constructor, which is not public
    chosen = optimizer._optimizer_map
    if hasattr(chosen, "default_optimizer"):
        groups = {pattern: again(inner) for pattern, inner in chosen.items()}
        chosen = type(chosen)(again(chosen.default_optimizer), groups)
    else:
        chosen = _selector(chosen, again)
    return type(optimizer)(**{**config, "optimizer_map": chosen})


def _selector(select: Callable[[Any], Any], again: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that returns copies of the optimizers of another, and is serialized as the other."""

    def selected(variable: Any) -> Any:
        return again(select(variable))

    name = keras.saving.get_registered_name(select) if hasattr(select, "__name__") else type(select).__name__
    selected.__name__ = name.strip("<>")  # a lambda can't be serialized, nor can its copy
    return selected


# optimizers around others: how one is made of copies of those, and the attribute that holds them
_BY_KIND: dict[type, Callable[[Any, dict[str, Any], Callable[[Any], Any]], Any]] = {
    keras.optimizers.LossScaleOptimizer: _loss_scale,
    **dict.fromkeys(compat.kinds("MultiOptimizer"), _multi),
}
_INSIDE = {
    keras.optimizers.LossScaleOptimizer: "inner_optimizer",
    **dict.fromkeys(compat.kinds("MultiOptimizer"), "_optimizer_map"),
}


def sharing_objects() -> Any:
    """Context in which an object that was serialized twice is deserialized once, as in ``.keras`` files."""
    from keras.src.saving.serialization_lib import ObjectSharingScope  # keras does not export it

    return ObjectSharingScope()


class Twin(NamedTuple):
    """An optimizer of the same config as another, with the variables it was built for and its own."""

    optimizer: Any
    params: Collection
    slots: Collection


def twin_of(optimizer: Any, values: Flat, owner: Callable[[Path], Any], rate: Any = None) -> Twin:
    """The optimizer rebuilt and built for variables of these values, with its slots at their start.

    Args:
        optimizer: a Keras optimizer; it is not changed.
        values: arrays by path.
        owner: the variable whose name, path and constraint one of a path has; None for none.
        rate: as in `rebuilt`.
    """
    params = Collection(Entry(path, _variable(path, v, owner(path)), PARAM) for path, v in values.items())
    counterparts = {id(owner(entry.path)): entry.variable for entry in params}
    fresh = rebuilt(optimizer, counterparts, rate=rate)
    with keras.name_scope(fresh.name, caller=fresh):
        fresh.build([entry.variable for entry in params])
    keys: Mapping[int, Path] = {id(entry.variable): entry.path for entry in params}
    return Twin(fresh, params, Collection(optimizer_entries(fresh, keys)))


def _variable(path: Path, value: Any, owner: Any) -> Any:
    """A variable with another value that stands in for its owner, since some slots start with the weights."""
    name = (path[-1] if path else "param").replace("/", "_")
    variable = keras.Variable(
        value, dtype=str(value.dtype), trainable=True, name=owner.name if owner is not None else name
    )
    # `_path`: the public one is made when a variable is, and can't be set
    variable._path = owner.path if owner is not None else "/".join(path) or name
    if owner is not None:
        variable.constraint = owner.constraint
        variable.overwrite_with_gradient = owner.overwrite_with_gradient
    return variable
