"""Keras's steps: which trees of a state each takes, and which it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras_flax_bridge import keras_internals
from keras_flax_bridge.optimizers.step_interface import training_variables
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.trees import Tree


class Kind(NamedTuple):
    """One of Keras's steps.

    Attributes:
        method: what Keras calls it.
        is_taken: whether the step takes a tree of a state.
        is_given: whether it gives such a tree back.
        variables: of a model, those of each tree that Keras knows of, in its order.
        trains: whether it counts as a step of training.
        batch: the name of the batch in errors.
        reads: trees that are taken besides, since the model's code reads them.
        changes: trees that are given back besides, since the model's code changes them.
    """

    method: str
    is_taken: Callable[[Tree], object]
    is_given: Callable[[Tree], object]
    variables: Callable[[Any], Sequence[Any]]
    trains: bool = False
    batch: str = "batch"
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()

    @property
    def takes(self) -> tuple[str, ...]:
        """The trees that it takes, in table order."""
        return trees.names(lambda tree: self.is_taken(tree) or tree.name in self.reads)

    @property
    def gives(self) -> tuple[str, ...]:
        """The trees that it gives back."""
        return trees.names(lambda tree: self.is_given(tree) or tree.name in self.changes)

    @property
    def is_compiled(self) -> bool:
        """Whether it needs what `compile` was given."""
        return self.method != "predict_step"

    def widened(self, tree: str, *, changed: bool) -> Kind:
        """The step that takes another tree, and gives it back if it is changed."""
        changes = self.changes | {tree} if changed else self.changes
        return self._replace(reads=self.reads | {tree}, changes=changes)

    @property
    def of_keras(self) -> tuple[str, ...]:
        """The trees that it takes and Keras knows of, in its order."""
        return trees.names(lambda tree: tree.variables and self.is_taken(tree))


def _evaluated(model: Any) -> Sequence[Any]:
    found = keras_internals.collect(model)
    return found.params, found.non_trainable, found.metrics, found.compiled


TRAIN = Kind(
    "train_step", lambda tree: tree.trained, lambda tree: tree.trained, training_variables, trains=True
)
EVALUATE = Kind(
    "test_step", lambda tree: tree.called or tree.evaluated, lambda tree: tree.evaluated, _evaluated
)
PREDICT = Kind(
    "predict_step", lambda tree: tree.called, lambda tree: False, keras_internals.collect_layer, batch="x"
)
PREDICT_ON = PREDICT._replace(is_given=lambda tree: tree.called and tree.evaluated)  # with the state after it
