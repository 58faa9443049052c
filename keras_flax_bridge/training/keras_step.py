"""Keras's train, test and predict step as pure functions on the leaves of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_not
from typing import Any

import jax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import BridgeError, StructureMismatchError
from keras_flax_bridge.keras_internals.batch_arrays import as_arrays
from keras_flax_bridge.keras_internals.batches import (
    REFUSALS,
    check_leading_axis,
    check_leaves,
    described,
    explain_batch,
    one_of,
)
from keras_flax_bridge.optimizers.step_interface import training_variables
from keras_flax_bridge.state import followers, trees
from keras_flax_bridge.state.building import build
from keras_flax_bridge.state.model_parts import require_single
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training import step_values
from keras_flax_bridge.training.kinds import Kind
from keras_flax_bridge.training.remat import Remat
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


class KerasStep:
    """A step of a model, Keras's or an overridden one. All but the arithmetic happens while tracing.

    Args:
        kind: which step.
        model: the model; compiled, but for a step that predicts.
        steps_per_call: for k > 1, batches carry a leading axis of size k, and the logs are those of the last.
        remat: the layers whose calls are checkpointed, as in `make_train_step`.
    """

    def __init__(self, kind: Kind, model: Any, steps_per_call: int = 1, remat: Remat = None):
        self.kind, self.names = kind, kind.takes
        self._remat = remat
        self.steps_per_call = steps_per_call
        self._model = model
        self._compilation = keras_internals.compilation(model) if kind.is_compiled else None
        self._is_built = not kind.is_compiled

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
        found = self._collections()
        order = {name: _order(c, places.get(name, {}), leaves, name) for name, c in found.items()}
        lists = {name: [leaves[place] for place in own] for name, own in order.items()}
        values, logs = step_values.run(self._model, self.kind, found, lists, batch, self._remat)
        after = list(leaves)
        for name in (name for name in self.kind.gives if name in found):
            for place, value in zip(order[name], strong(values[name]), strict=True):
                after[place] = value
        if self.kind.trains:
            count = strong(count + 1)
            _follow(places, count, after)
        return count, after, logs

    def _collections(self) -> dict[str, Any]:
        """The variables of each tree that the step takes."""
        found = dict(zip(self.kind.of_keras, self.kind.variables(self._model), strict=True))
        if "opt_state" in self.kind.reads:
            found["opt_state"] = training_variables(self._model)[2]
        return found

    def takes_up(self, wanted: BaseException) -> bool:
        """Whether an error is that the model's code uses another tree, which later calls take."""
        if not isinstance(wanted, keras_internals.Wanted):
            return False
        self.kind = self.kind.widened(wanted.tree, changed=wanted.changed)
        self.names = self.kind.takes
        return True

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
                    build(self._model, one_of(as_arrays(batch), self.steps_per_call))
            self._is_built = True

    def explain(self, error: BaseException, fields: Fields, batch: Any) -> None:
        """Raises the cause of an error of the step, if it is the state or the batch.

        Any other error gets a note that describes the batch.
        """
        if isinstance(error, REFUSALS) and not isinstance(error, BridgeError):
            error.add_note(f"A step of keras_flax_bridge on this batch:\n{described(batch)}")
            check_leaves(batch if self.kind.is_compiled else (batch,))
            explain_leaf(error, {"state": fields, self.kind.batch: batch})
            explain_batch(self._model, self.kind.method, one_of(batch, self.steps_per_call), error)


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
