"""Keras optimizers on trees of arrays: which variable a leaf stands for, and copies built for such trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import BridgeError, StructureMismatchError, UnsupportedOptimizerError, said
from keras_flax_bridge.keras_internals import Twin
from keras_flax_bridge.optimizers.rules import RULES
from keras_flax_bridge.optimizers.to_optax import group_question, inner_optimizers, is_outer, reads_parameters
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.tree.leaves import is_abstract, placed_like, strong
from keras_flax_bridge.tree.paths import Flat, Path, join_path

Owner = Callable[[Path], Any]


class Owners:
    """The variable of every leaf of a tree, as far as it matters which one it is.

    With a model by structural key, with or without the levels that `nnx.State` adds. Without one, where a
    built optimizer treats its variables differently, by their paths, names and shapes.
    """

    def __init__(self, optimizer: Any, model: Any):
        self._model, self._optimizer = model, optimizer
        self._by_path = {} if model is None else _keys(model)
        self._leaves = Leaves(optimizer)
        self._questions = {} if model is not None else _questions(optimizer, self._leaves.variables)

    @property
    def overwritten(self) -> bool:
        """Whether gradients overwrite any variable."""
        known = self._by_path.values() if self._model is not None else self._leaves.variables
        return any(map(keras_internals.is_overwritten, known))

    @property
    def constrained(self) -> bool:
        """Whether any variable has a constraint."""
        known = self._by_path.values() if self._model is not None else self._leaves.variables
        return any(variable.constraint is not None for variable in known)

    def samples(self) -> dict[Path, Any]:
        """Variables, or their shapes and dtypes, that have every kind of slot."""
        if self._model is not None:
            return self._by_path
        if self._questions:
            return {tuple(variable.path.split("/")): variable for variable in self._leaves.variables}
        return {(str(rank),): jax.ShapeDtypeStruct((2,) * rank, "float32") for rank in (1, 2)}

    def of(self, flat: Flat) -> dict[Path, Any]:
        """The variables by path; none where they don't matter.

        Raises:
            StructureMismatchError: if a leaf is no variable of the model, or of the optimizer.
            UnsupportedOptimizerError: if the variables that a leaf may stand for are treated differently.
        """
        if self._model is not None:
            return {path: self._in_model(path) for path in flat}
        return self._matched(flat) if self._questions else {}

    def _in_model(self, path: Path) -> Any:
        short = path[:-1] if path[-1:] == ("value",) else path  # a level of nnx.State
        plain = tuple(name.rstrip("_") for name in short)  # the attributes of ToNNX
        for known in (path, short, plain):
            if known in self._by_path:
                return self._by_path[known]
        raise StructureMismatchError(
            f"params/{join_path(path)}",
            got="a leaf that is not a trainable variable of the model",
            expected="the parameters of TrainState.from_keras(model)",
            fix="Pass the model that the parameters belong to, or no model.",
        )

    def _matched(self, flat: Flat) -> dict[Path, Any]:
        free = {id(variable) for variable in self._leaves.variables}
        found = {}
        for path, leaf in flat.items():
            for what, question in self._questions.items():
                self._leaves.answer(path, leaf, question, what)
            candidates = self._leaves.candidates(path, leaf)  # now any of them will do, but each once
            found[path] = next((v for v in candidates if id(v) in free), candidates[0])
            free.discard(id(found[path]))
        return found


def _keys(model: Any) -> dict[Path, Any]:
    return {entry.path: entry.variable for entry in keras_internals.collect_layer(model)[0]}


def _questions(optimizer: Any, variables: list[Any]) -> dict[str, Callable[[Any], Any]]:
    """What an optimizer asks of its variables besides their shapes, where their answers differ."""
    found: dict[str, Callable[[Any], Any]] = {
        "their constraint": attrgetter("constraint"),
        "whether gradients overwrite them": keras_internals.is_overwritten,
    }
    for index, inner in enumerate(inner_optimizers(optimizer)):
        if keras_internals.is_multi(inner):
            found["their optimizer"] = group_question(inner)
        if getattr(inner, "exclude_layers", None):
            found["who updates them"] = partial(keras_internals.takes_adam, inner)
        if keras_internals.excludes_variables(inner):
            # not by name, which the leaf has too
            ids = keras_internals.exclusions(inner).ids
            found[f"their weight decay ({index})"] = partial(_is_among, ids)
    neutral = (None, False)
    return {what: ask for what, ask in found.items() if any(ask(v) not in neutral for v in variables)}


def _is_among(ids: frozenset[int], variable: Any) -> bool:
    return id(variable) in ids


class Twins:
    """Copies of an optimizer, each built for the paths, shapes and dtypes of a tree of parameters."""

    def __init__(self, optimizer: Any, owners: Owners, rate: Any):
        self._optimizer, self._owners, self._rate = optimizer, owners, rate
        self._made: dict[Any, Twin] = {}

    def started(self, flat: Flat) -> Twin:
        """One whose variables hold these values, and their slots the ones they start with."""
        owners = self._owners.of(flat)
        try:
            return keras_internals.twin_of(self._optimizer, flat, owners.get, self._rate)
        except BridgeError:
            raise
        except Exception as error:  # of the user's config and build, which may raise anything
            kind = type(self._optimizer).__name__
            raise UnsupportedOptimizerError(
                f"optimizer {self._optimizer.name!r}",
                got=f"a {kind} that can't be rebuilt ({type(error).__name__}: {said(error)})",
                expected="a get_config() that returns all arguments of its constructor",
                fix="Define it as described in Keras's guide on serialization, and register the class.",
            ) from error

    def of(self, flat: Flat) -> Twin:
        """One for such leaves, made once, whose variables hold no values."""
        key = tuple((path, leaf.shape, str(leaf.dtype)) for path, leaf in flat.items())
        if key not in self._made:
            with jax.ensure_compile_time_eval():
                made = self.started({path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in flat.items()})
            keras_internals.move([*made.params, *made.slots])
            self._made[key] = made
        return self._made[key]

    def fields(self) -> dict[Path, Any]:
        """The names of the slots, each with None, and the other leaves of the state with their values."""
        known = self._owners.samples()
        made = self.started({path: jnp.zeros(v.shape, str(v.dtype)) for path, v in known.items()})
        found: dict[Path, Any] = {}
        for entry in made.slots:
            owner = owner_of(entry.path, known)
            if owner is None:
                found[entry.path] = strong(entry.variable.value)
            else:
                found[entry.path[: len(entry.path) - len(owner)]] = None
        return found


def owner_of(path: Path, owners: Mapping[Path, Any]) -> Path | None:
    """The longest path of a parameter at the end of the path of a slot; None if it is of none."""
    found = (path[start:] for start in range(len(path) + 1) if path[start:] in owners)
    longest = next(found, None)
    return None if longest == path and path else longest


def start_values(twin: Twin, params: Flat) -> list[Any]:
    """The values that slots start with, each placed as the parameter of its shape that it belongs to."""
    values = []
    for entry in twin.slots:
        # some slots start with the parameters: not with their buffers, which may be donated
        value = jnp.copy(strong(entry.variable.value))
        owner = owner_of(entry.path, params)
        values.append(value if owner is None else _sharded_like(value, params[owner]))
    return values


def filled(flat: Flat) -> Flat:
    """Parameters in which abstract ones are not numbers, so that slots which start with them show."""
    pairs = flat.items()
    return {path: _without_value(leaf) if is_abstract(leaf) else jnp.asarray(leaf) for path, leaf in pairs}


def _without_value(spec: Any) -> Any:
    return jnp.full(spec.shape, jnp.nan if jnp.issubdtype(spec.dtype, jnp.inexact) else 0, spec.dtype)


def abstracted(value: Any) -> Any:
    """A value that depends on an abstract parameter, as a spec; another one itself."""
    if not jnp.issubdtype(value.dtype, jnp.inexact) or not bool(jnp.isnan(value).any()):
        return value
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=getattr(value, "sharding", None))


def _sharded_like(value: Any, param: Any) -> Any:
    if value.shape != param.shape:
        return value
    if is_abstract(param):
        return value if param.sharding is None else placed_like(value, param)
    sharding = jax.typeof(param).sharding
    if any(kind == jax.sharding.AxisType.Explicit for kind in sharding.mesh.axis_types):
        return jax.sharding.reshard(value, sharding)
    return placed_like(value, param)


def need_of(optimizer: Any, owners: Owners) -> str | None:
    """What an optimizer needs the parameters for; None if its updates don't depend on them."""
    own = [inner for inner in inner_optimizers(optimizer) if not is_outer(inner)]
    unknown = [type(inner).__name__ for inner in own if type(inner) not in RULES]
    if unknown:
        return f"a {unknown[0]}, which may read them"
    if owners.overwritten:
        return "gradients that overwrite their variable"
    return "constraints" if owners.constrained else reads_parameters(optimizer)
