"""Keras's train, test and predict step as pure functions on the leaves of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_not
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import BridgeError, StructureMismatchError
from keras_flax_bridge.keras_internals.batches import (
    check,
    check_inputs,
    check_leading_axis,
    check_leaves,
    described,
    one_of,
)
from keras_flax_bridge.optimizers.step_interface import training_variables
from keras_flax_bridge.state import followers, trees
from keras_flax_bridge.state.building import build
from keras_flax_bridge.state.multi_model import require_single
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.trees import Tree
from keras_flax_bridge.tree.leaves import explain_leaf, strong
from keras_flax_bridge.tree.paths import Path

Logs = dict[str, Any]
Fields = dict[str, Any]  # some fields of a TrainState, by name
Places = Mapping[str, Mapping[Path, int]]  # by tree and path, where a leaf is in a list of leaves


def fields_of(state: TrainState, names: tuple[str, ...]) -> Fields:
    """Some fields of the state of one model.

    Raises:
        StructureMismatchError: if it is something else.
    """
    if not isinstance(state, TrainState):
        raise StructureMismatchError(
            "state",
            got=f"a {type(state).__name__}",
            expected="a TrainState",
            fix="Take one with TrainState.from_keras(model).",
        )
    require_single(state.parts, "step")
    return trees.of_state(state, names)


class Kind(NamedTuple):
    """One of Keras's steps.

    Attributes:
        method: what Keras calls it.
        is_taken: whether the step takes a tree of a state.
        is_given: whether it gives such a tree back.
        variables: of a model, those of each tree that Keras knows of, in its order.
        trains: whether it counts as a step of training.
        batch: the name of the batch in errors.
    """

    method: str
    is_taken: Callable[[Tree], object]
    is_given: Callable[[Tree], object]
    variables: Callable[[Any], Sequence[Any]]
    trains: bool = False
    batch: str = "batch"

    @property
    def takes(self) -> tuple[str, ...]:
        """The trees that it takes, in Keras's order."""
        return trees.names(self.is_taken)

    @property
    def gives(self) -> tuple[str, ...]:
        """The trees that it gives back."""
        return trees.names(self.is_given)

    @property
    def of_keras(self) -> tuple[str, ...]:
        """The trees that it takes and Keras knows of, in its order."""
        return trees.names(lambda tree: tree.variables and self.is_taken(tree))


def _evaluated(model: Any) -> Sequence[Any]:
    params, non_trainable, _, metrics = keras_internals.collect(model)
    return params, non_trainable, metrics


TRAIN = Kind(
    "train_step", lambda tree: tree.trained, lambda tree: tree.trained, training_variables, trains=True
)
EVALUATE = Kind(
    "test_step", lambda tree: tree.called or tree.evaluated, lambda tree: tree.evaluated, _evaluated
)
PREDICT = Kind(
    "predict_step", lambda tree: tree.called, lambda tree: False, keras_internals.collect_layer, batch="x"
)


class KerasStep:
    """A step of a model, Keras's or an overridden one. All but the arithmetic happens while tracing.

    Args:
        kind: which step.
        model: the model; compiled, but for `PREDICT`.
        steps_per_call: for k > 1, batches carry a leading axis of size k, and the logs are those of the last.
    """

    def __init__(self, kind: Kind, model: Any, steps_per_call: int = 1):
        self.kind = kind
        self.steps_per_call = steps_per_call
        self._model = model
        self._compilation = keras_internals.compilation(model) if kind is not PREDICT else None
        self._is_built = kind is PREDICT

    def __call__(
        self, places: Places, count: Any, leaves: list[Any], batch: Any
    ) -> tuple[Any, list[Any], Any]:
        """Runs the step, or several.

        Args:
            places: where the leaves of each tree are.
            count: of steps of training; None for a step that isn't one.
            leaves: of all trees that the step takes.
            batch: the batch.

        Returns:
            The count, the leaves of all trees that the step takes, as it left them, and its logs or outputs.

        Raises:
            StructureMismatchError: if the leaves or the batch don't match the model.
        """
        if self.steps_per_call == 1:
            return self._once(places, count, leaves, batch)
        check_leading_axis(batch, self.steps_per_call)

        def body(carry: tuple[Any, list[Any]], one: Any) -> tuple[tuple[Any, list[Any]], Any]:
            count, leaves, logs = self._once(places, *carry, one)
            return (count, leaves), logs

        (count, leaves), logs = jax.lax.scan(body, (count, leaves), batch)
        return count, leaves, jax.tree.map(lambda values: values[-1], logs)

    def _once(self, places: Places, count: Any, leaves: list[Any], batch: Any) -> tuple[Any, list[Any], Any]:
        self._check(batch)
        collections = dict(zip(self.kind.of_keras, self.kind.variables(self._model), strict=True))
        order = {name: _order(c, places.get(name, {}), leaves, name) for name, c in collections.items()}
        values, logs = self._run(
            collections, {n: [leaves[i] for i in own] for n, own in order.items()}, batch
        )
        after = list(leaves)
        for name in (name for name in self.kind.gives if name in collections):
            for place, value in zip(order[name], strong(values[name]), strict=True):
                after[place] = value
        if self.kind.trains:
            count = strong(count + 1)
            _follow(places, count, after)
        return count, after, logs

    def _run(
        self, collections: Mapping[str, Any], lists: Mapping[str, list[Any]], batch: Any
    ) -> tuple[Any, Any]:
        """Keras's own step on lists of values in its order: values after it by tree, logs or outputs."""
        given, kind = tuple(lists.values()), self.kind
        run = getattr(self._model, kind.method)
        with keras_internals.finalized(self._model, collections["non_trainable"], lists["non_trainable"]):
            if kind is PREDICT:
                return {}, run(given, (batch,))[0]
            logs, values = run(given, batch)
        return dict(zip(kind.of_keras, values, strict=True)), jax.tree.map(jnp.asarray, dict(logs))

    def _check(self, batch: Any) -> None:
        if self.kind is PREDICT:
            check_inputs(self._model, batch)
        elif not keras_internals.is_overridden(self._model, self.kind.method):
            check(self._model, batch)

    def prepare(self, batch: Any) -> None:
        """Builds missing variables from the first batch, as `fit` does; later calls are free.

        Raises:
            StructureMismatchError: if the model was compiled again since the step was made.
        """
        if self._compilation is None:
            return
        if any(map(is_not, keras_internals.compilation(self._model), self._compilation)):
            raise StructureMismatchError(
                f"model {self._model.name!r}",
                got="a loss, optimizer or metrics that were compiled after the step was made",
                expected="those that the step was made for",
                fix="Make the step again, and move the state with state.repartition(model).",
            )
        if not self._is_built:
            if not keras_internals.is_built(self._model):
                with jax.ensure_compile_time_eval():  # new variables must not hold values of an outer trace
                    build(self._model, one_of(batch, self.steps_per_call))
            self._is_built = True

    def explain(self, error: BaseException, fields: Fields, batch: Any) -> None:
        """Raises the cause of an error of the step, if it is the state or the batch.

        Any other error gets a note that describes the batch.
        """
        if isinstance(error, (TypeError, ValueError, RuntimeError)) and not isinstance(error, BridgeError):
            error.add_note(f"A step of keras_flax_bridge on this batch:\n{described(batch)}")
            check_leaves((batch,) if self.kind is PREDICT else batch)
            explain_leaf(error, {"state": fields, self.kind.batch: batch})


def _order(collection: Any, places: Mapping[Path, int], leaves: Sequence[Any], name: str) -> list[int]:
    """The position of each variable's value, in Keras's order, after checking them against the model."""
    flat = {path: leaves[place] for path, place in places.items()}
    return [places[path] for path in collection.order(flat, f"state.{name}")]


def _follow(places: Places, count: Any, leaves: list[Any]) -> None:
    """Puts in place the trees that follow others, as they are after a step that left these leaves."""
    for name, follower in followers.following(places):
        own, of = ({path: leaves[i] for path, i in places.get(n, {}).items()} for n in (name, follower.of))
        for path, value in followers.advanced(name, follower, own, of, count).items():
            leaves[places[name][path]] = value
