"""Maps the leaves of a parameter tree to Keras variables, for optimizers with per-variable settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import NotBuiltError, StructureMismatchError, UnsupportedOptimizerError
from keras_flax_bridge.keras_internals import NamedLeaf
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.paths import Path, join_path, named_leaves


class Leaves:
    """The variables behind the leaves of parameter trees.

    With a model every leaf is found by its structural key. Without one, among the variables that the
    optimizer was built for: by the variable's own path, one name or nested, otherwise by name and
    shape; leaves of which several variables are possible must get the same answer from all of them.
    An optimizer that isn't built is asked for the leaf's name.
    """

    def __init__(self, optimizer: Any, model: Any = None):
        self._name = getattr(optimizer, "name", "")
        self._by_path: dict[Path, Any] = {}
        self.variables = [] if optimizer is None else keras_internals.built_for(optimizer)
        if model is not None:
            self._by_path = {entry.path: entry.variable for entry in keras_internals.collect_layer(model)[0]}
            self.variables = list(self._by_path.values())

    def require_known(self, what: str) -> None:
        """Checks that there are variables to ask.

        Raises:
            NotBuiltError: saying what can't be decided without.
        """
        if not self.variables:
            raise NotBuiltError(
                f"optimizer {self._name!r}",
                got=f"an optimizer that isn't built, with {what}",
                expected="the variables that it trains",
                fix="Pass model=, or build the optimizer: optimizer.build(model.trainable_variables).",
            )

    def ask(self, tree: Any, question: Callable[[Any], Any], what: str) -> Any:
        """A tree like `tree` with the answer for every leaf; a leaf may be None in it.

        Raises:
            StructureMismatchError: if a leaf matches no variable.
            UnsupportedOptimizerError: if the variables that a leaf may stand for differ in the answer.
        """
        treedef: Any
        keys, treedef = jax.tree_util.tree_flatten_with_path(tree)
        return treedef.unflatten(self._answers(keys, question, what))

    def _answers(self, keys: list[Any], question: Callable[[Any], Any], what: str) -> list[Any]:
        everyone = [question(variable) for variable in self.variables]
        if everyone and all(_same(answer, everyone[0]) for answer in everyone):
            return [everyone[0]] * len(keys)  # then any tree is accepted, such as that of a Flax module
        return [self.answer(path, leaf, question, what) for path, leaf in named_leaves(keys)]

    def answer(self, path: Path, leaf: Any, question: Callable[[Any], Any], what: str) -> Any:
        """The answer for one leaf.

        Raises:
            StructureMismatchError: if it matches no variable.
            UnsupportedOptimizerError: if the variables that it may stand for differ in the answer.
        """
        answers = [question(variable) for variable in self.candidates(path, leaf)]
        if not all(_same(answer, answers[0]) for answer in answers):
            raise UnsupportedOptimizerError(
                f"params/{join_path(path)}",
                got=f"{len(answers)} variables of that name and shape, which differ in {what}",
                expected="the model, which identifies them",
                fix="Pass model=, and parameters as TrainState.from_keras(model) has them; without a model "
                "name each parameter by its variable.path.",
            )
        return answers[0]

    def candidates(self, path: Path, leaf: Any) -> list[Any]:
        """The variables that a leaf may stand for, or its name if the optimizer isn't built.

        Raises:
            StructureMismatchError: if it matches no variable.
        """
        if not self.variables:
            return [NamedLeaf(path, tuple(leaf.shape))]
        if path in self._by_path:
            return [self._by_path[path]]
        alike = [v for v in self.variables if tuple(v.shape) == tuple(leaf.shape)]
        if self._by_path or not alike:
            raise StructureMismatchError(
                f"params/{join_path(path)}",
                got=f"a leaf {spec_text(leaf)} that matches no variable",
                expected="the parameters that the optimizer was built for",
                fix="Pass state.params of TrainState.from_keras(model), or a model of this structure.",
            )
        same = [v for v in alike if v.path == "/".join(path)]
        if len(same) == 1:
            return same
        named = [v for v in alike if path and _stem(v.name) == _stem(path[-1])]
        return named or alike


def _stem(name: str) -> str:
    """A name without the number that a second one of it gets."""
    return re.sub(r"_\d+$", "", name)


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are equal; constraints are if their configs are."""
    return a == b or (type(a) is type(b) and hasattr(a, "get_config") and a.get_config() == b.get_config())
