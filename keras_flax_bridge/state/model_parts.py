"""One model out of a state of several, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import jax.numpy as jnp

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.multi_model import joined, require_names, require_same_weights
from keras_flax_bridge.state.untracked import rnn_states
from keras_flax_bridge.tree.leaves import owned
from keras_flax_bridge.tree.paths import fill_tree, flatten_tree
from keras_flax_bridge.tree.types import PyTree


def require_single(names: Iterable[str], where: str) -> None:
    """Checks that a state is of one model.

    Raises:
        StructureMismatchError: if it is of several.
    """
    several = ", ".join(map(repr, names))
    if several:
        raise StructureMismatchError(
            where,
            got=f"one model, and a state of several: {several}",
            expected="a state of that one model, or a dict of all models",
            fix="Take state.part(name), and put it back with state.with_parts(...).",
        )


class ModelParts:
    """Methods of a `TrainState` for the models in it."""

    if TYPE_CHECKING:  # interface of Flax's class
        apply_fn: Any
        tx: Any
        step: Any
        non_trainable: Any

        def replace(self, **fields: Any) -> Self: ...  # noqa: D102

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the models in a state of several; empty for a state of one."""
        return tuple(getattr(self.apply_fn, "parts", ()))

    def part(self, name: str) -> Self:
        """The state of one of several models, equal to `from_keras` of that model.

        Everything that works on a state of one model works on it: steps, `apply_gradients`, `apply_fn`.
        Donating it invalidates the leaves of this state, except `step`, which is copied.

        Args:
            name: a name of `parts`.

        Returns:
            The state.

        Raises:
            StructureMismatchError: if there is no such model.

        Example:
            >>> import keras, optax
            >>> from keras_flax_bridge import TrainState
            >>> build = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> models = {"online": build(), "target": build()}
            >>> state = TrainState.from_keras(models, optimizer={"online": "adam", "target": None})
            >>> online, target = state.part("online"), state.part("target")
            >>> target = target.replace(params=optax.incremental_update(online.params, target.params, 0.1))
            >>> state = state.with_parts(target=target)
            >>> state.params["target"]["dense"]["kernel"].shape
            (4, 2)
        """
        require_names([name], dict.fromkeys(self.parts), "part")
        values = trees.of_state(self, trees.of_models())
        own = {tree: _of_one(tree, value, name) for tree, value in values.items()}
        apply_fn: Any = self.apply_fn
        step = owned(self.step)
        return self.replace(step=step, apply_fn=apply_fn.parts[name], tx=self.tx.parts[name], **own)

    def with_parts(self, **parts: Any) -> Self:
        """The state with some of its models' states replaced.

        Args:
            **parts: states by name, as `part` gives them.

        Returns:
            A new state; its `step` is the largest of the parts.

        Raises:
            StructureMismatchError: if there is no such model, or a state is of another one.
        """
        require_names(parts, dict.fromkeys(self.parts), "with_parts")
        present = {name: self.part(name) for name in self.parts}
        for name, part in parts.items():
            require_same_weights(part, present[name], name)
        return self.replace(**joined({**present, **parts}))

    def reset_states(self) -> Self:
        """The state with the states of stateful RNNs at zero, as their `reset_state` sets them.

        Returns:
            A new state; everything else is unchanged.

        Example:
            >>> import keras, numpy as np
            >>> from keras_flax_bridge import TrainState, make_predict_step
            >>> rnn = keras.layers.SimpleRNN(2, stateful=True)
            >>> model = keras.Sequential([keras.Input(batch_shape=(1, 3, 2)), rnn])
            >>> model.compile("sgd", "mse")
            >>> predict_step = make_predict_step(model, return_state=True)
            >>> y, state = predict_step(TrainState.from_keras(model), np.ones((1, 3, 2)))
            >>> bool(state.non_trainable["simple_rnn"]["rnn_state"].any())
            True
            >>> bool(state.reset_states().non_trainable["simple_rnn"]["rnn_state"].any())
            False
        """
        flat = flatten_tree(self.non_trainable)
        zeros = {path: jnp.zeros_like(flat[path]) for path in rnn_states(self) if path in flat}
        return self.replace(non_trainable=fill_tree(self.non_trainable, zeros))


def _of_one(tree: str, value: PyTree, name: str) -> PyTree:
    """The part of a tree that belongs to one model; trees that follow another tree may lack a model."""
    return value.get(name, {}) if trees.TREES[tree].follows else value[name]
