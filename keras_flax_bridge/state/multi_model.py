"""Several models in one state: every tree gets a first level, one name a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import Any

import jax.numpy as jnp
import optax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.apply_fn import KerasApply
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import SharedOnCopy
from keras_flax_bridge.tree.paths import flatten_tree, join_path


class PartsApply:
    """``apply_fn(variables, x, ..., method=name)`` of several models; `method` as Linen has it."""

    def __init__(self, parts: Mapping[str, KerasApply]):
        self.parts = dict(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartsApply) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(tuple(self.parts.items()))

    def __call__(
        self, variables: Mapping[str, Any], *args: Any, method: str | None = None, **kwargs: Any
    ) -> Any:
        """Calls one of the models on its subtrees.

        Args:
            variables: ``{"params": ..., "non_trainable": ...}``, as `state` has them.
            *args: arguments of the model's call.
            method: the model's name, or ``name.method`` for a method of it.
            **kwargs: as for a single model. Updates of ``non_trainable`` include the
                unchanged values of the other models.

        Returns:
            The outputs, or ``(outputs, updates)`` if ``mutable`` names any.

        Raises:
            StructureMismatchError: if there is no such model, or `variables` don't match it.
        """
        name, _, inner = (method, "", "") if method in self.parts else str(method).partition(".")
        require_names([name if inner else method], self.parts, "method")
        kwargs |= {"method": inner} if inner else {}
        own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        result = self.parts[name](own, *args, **kwargs)
        if not kwargs.get("mutable"):
            return result
        outputs, updates = result
        if "non_trainable" in updates:
            others = variables.get("non_trainable", {})
            updates = {**updates, "non_trainable": {**others, name: updates["non_trainable"]}}
        return outputs, updates


class PartsTransformation(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """One optimizer for each model; models without gradients stay as they are."""

    parts: dict[str, Any]

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> PartsTransformation:
        """The transformations of several models as one."""

        def init(params: Any) -> Any:
            return {name: tx.init(params[name]) for name, tx in parts.items()}

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            require_names(grads, parts, "grads")
            both = {
                name: optax.with_extra_args_support(parts[name]).update(g, state[name], params[name], **extra)
                for name, g in grads.items()
            }
            updates = {name: update for name, (update, _) in both.items()}
            return updates, {**state, **{name: new for name, (_, new) in both.items()}}

        self: PartsTransformation = cls(init, update)
        self.parts = dict(parts)
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartsTransformation) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(tuple(self.parts.items()))


def require_names(names: Iterable[Any], models: Mapping[str, Any], where: str) -> None:
    """Checks that every name is the name of a model.

    Raises:
        StructureMismatchError: listing the names that are not.
    """
    unknown = [repr(name) for name in names if name not in models]
    if unknown:
        raise StructureMismatchError(
            where,
            got=", ".join(unknown),
            expected=f"one of {', '.join(map(repr, models))}"
            if models
            else "nothing: the state is of one model",
            fix="Name the models as they were named when the state was made.",
        )


def require_same_weights(part: Any, present: Any, name: str) -> None:
    """Checks that a state has the same weights as another, trainable or not.

    Raises:
        StructureMismatchError: listing the weights that differ.
    """
    if not hasattr(part, "params"):
        raise StructureMismatchError(
            name,
            got=f"a {type(part).__name__}",
            expected="a TrainState",
            fix="Pass what state.part(name) returned.",
        )
    got, expected = ({**flatten_tree(s.params), **flatten_tree(s.non_trainable)} for s in (part, present))
    difference = diff_trees(got, expected)
    if difference:
        raise difference.error(f"part {name!r}", "It is the state of a different model.")


def require_same(models: Mapping[str, Any], names: Collection[str]) -> None:
    """Checks that a dict of models has exactly these names.

    Raises:
        StructureMismatchError: listing the names that are missing and unexpected.
    """
    if not names:
        require_names(models, {}, "models")
    missing = [name for name in names if name not in models]
    unexpected = [name for name in models if name not in names]
    if missing or unexpected:
        raise StructureMismatchError(
            "models", missing=missing, unexpected=unexpected, fix="Pass a dict of all models of the state."
        )


def models_of(apply_fn: Any) -> dict[str, Any]:
    """The Keras models that an `apply_fn` calls, by name; a single one is called ``""``."""
    parts = apply_fn.parts if isinstance(apply_fn, PartsApply) else {"": apply_fn}
    return {name: part.model for name, part in parts.items() if isinstance(part, KerasApply)}


def arguments(given: Mapping[str, Any], name: str, models: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for one model, of arguments that are dicts by model.

    A model that ``optimizer`` names with None isn't trained; one that it doesn't name keeps its own.

    Raises:
        StructureMismatchError: if an argument is not a dict, or names an unknown model.
    """
    own = {argument: _chosen(value, name, models, argument) for argument, value in given.items()}
    if "optimizer" in own and own["optimizer"] is None and name in (given["optimizer"] or {}):
        own["optimizer"] = optax.set_to_zero()
    return own


def _chosen(value: Any, name: str, models: Mapping[str, Any], argument: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise StructureMismatchError(
            argument,
            got=f"a {type(value).__name__}",
            expected="a dict by model",
            fix=f"For several models, pass {argument}={{name: ...}}.",
        )
    require_names(value, models, argument)
    return value.get(name)


def joined(states: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a state of several models; its step is the largest of their steps."""
    own = {name: trees.of_state(state, trees.of_models()) for name, state in states.items()}
    names = next(iter(own.values()))
    return {
        "step": reduce(jnp.maximum, [state.step for state in states.values()]),
        "apply_fn": PartsApply({name: state.apply_fn for name, state in states.items()}),
        "tx": PartsTransformation.of({name: state.tx for name, state in states.items()}),
        **{tree: {name: values.get(tree, {}) for name, values in own.items()} for tree in names},
    }


def require_distinct(models: Mapping[str, Any]) -> None:
    """Checks that models have names and share no variable: a state would hold copies of it that diverge.

    Raises:
        StructureMismatchError: naming both places of each shared variable.
    """
    if not models or not all(isinstance(name, str) for name in models):
        raise StructureMismatchError(
            "models",
            got=f"the names {list(models)}",
            expected="one or more names, each a string",
            fix="Pass {name: model}.",
        )
    places: dict[int, str] = {}
    shared = []
    for name, model in models.items():
        for entry in (entry for part in keras_internals.collect_layer(model) for entry in part):
            path = join_path((name, *entry.path))
            first = places.setdefault(id(entry.variable), path)
            if first != path:
                shared.append(f"{first} = {path}")
    if shared:
        raise StructureMismatchError(
            "models",
            report=[f"  shared      {pair}" for pair in shared],
            unexpected=shared,
            fix="Give the models that own the layers, and combine them in your step.",
        )
