"""Converts a `TrainState` from a Keras optimizer to optax and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError, printable
from keras_flax_bridge.keras_internals import ModelVariables
from keras_flax_bridge.optimizers.as_optax import Adapter
from keras_flax_bridge.optimizers.opt_state import opt_state_from_optax
from keras_flax_bridge.optimizers.optax_optimizer import OptaxOptimizer
from keras_flax_bridge.optimizers.optax_slots import from_slots, to_slots
from keras_flax_bridge.optimizers.overwrites import without_overwriting
from keras_flax_bridge.optimizers.state_conversion import packed
from keras_flax_bridge.optimizers.step_interface import KerasTransformation, training_model, transformation
from keras_flax_bridge.optimizers.to_optax import Native
from keras_flax_bridge.state.apply_fn import KerasApply
from keras_flax_bridge.state.building import built
from keras_flax_bridge.state.multi_model import require_names
from keras_flax_bridge.tree.leaves import explained
from keras_flax_bridge.tree.types import Models

log = logging.getLogger("keras_flax_bridge")


class OptimizerSwitch:
    """Methods of a `TrainState` that switch between a Keras optimizer and optax; nothing else changes."""

    def to_optax(self, model: Models | None = None) -> Self:
        """The state with native optax for the Keras optimizer, in the middle of training.

        ``state.tx`` is `to_optax` of the optimizer and ``state.opt_state`` its state; parameters,
        counts, slots and the learning rate are kept. As in `apply_gradients`, gradients are those of
        the unscaled loss, even if the Keras optimizer scales the loss.

        Args:
            model: the model, compiled with an optimizer of the kind that trained the state, or not
                compiled; None for the one the state was taken from. Of several models a dict.

        Returns:
            A new state; concrete or abstract, as this one is. Donate only one of the two.

        Raises:
            UnsupportedOptimizerError: if the optimizer or an option of it can't be converted, or the
                state is optax's already.
            StructureMismatchError: if the model has other parameters or its optimizer other slots.

        Example:
            >>> import jax, keras
            >>> from keras_flax_bridge import TrainState
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> model.compile("adam", "mse")
            >>> state = TrainState.from_keras(model).to_optax()
            >>> state = state.apply_gradients(grads=jax.tree.map(jax.numpy.ones_like, state.params))
            >>> int(state.to_keras(model).opt_state["iteration"])
            1
        """
        moved: Self = _moved(self, model, _to_optax)
        return moved

    def to_keras(self, model: Models | None = None) -> Self:
        """The state with a Keras optimizer in place of optax, in the middle of training.

        The optimizer is that of a compiled model, of the same rule and options, or an `OptaxOptimizer` of
        the same transformation. A model that isn't compiled with a Keras optimizer gets the one that
        `to_optax` or `as_optax` was given, or else ``OptaxOptimizer(state.tx)``.

        Args:
            model: a model as above; None for the one the state was taken from. Of several models a dict.

        Returns:
            A new state; ``assign_to(model)`` then fills the optimizer's slots as well. If the state
            comes from a stock optax optimizer whose rule differs, a log line names the difference.

        Raises:
            StructureMismatchError: if slots are missing, or are those of other parameters.
            UnsupportedOptimizerError: if the state does not belong to the optimizer's rule.
        """
        moved: Self = _moved(self, model, _to_keras)
        return moved


def _moved(state: Any, model: Any, move: Callable[[Any, Any], dict[str, Any]]) -> Any:
    if not state.parts and not isinstance(model, Mapping):
        return state.replace(**move(state, model))
    model = dict.fromkeys(state.parts) if model is None else model
    require_names(model, dict.fromkeys(state.parts), "models")
    parts = {name: state.part(name) for name in model}
    return state.with_parts(**{n: part.replace(**move(part, model[n])) for n, part in parts.items()})


def _to_optax(state: Any, model: Any) -> dict[str, Any]:
    if not isinstance(state.tx, KerasTransformation):
        raise UnsupportedOptimizerError(
            "state.tx",
            got="an optax transformation",
            expected="a Keras optimizer",
            fix="The state is optax's already; state.to_keras(model) takes it to Keras.",
        )
    model = state.apply_fn.model if model is None else model
    own = None if getattr(model, "compiled", False) else state.tx.optimizer
    trained = built(training_model(model, optimizer=own), None)
    keras_internals.collect_layer(trained)[0].leaves(state.params, "params")
    tx = Native.of(trained.optimizer, trained, unscaled=True)
    with explained({"opt_state": state.opt_state}):
        opt_state = packed(tx, state.opt_state, state.params)
    return {"tx": tx, "opt_state": opt_state, "apply_fn": KerasApply(trained)}


def _to_keras(state: Any, model: Any) -> dict[str, Any]:
    model = state.apply_fn.model if model is None else model
    trained = built(training_model(model, optimizer=_optimizer_of(state, model)), None)
    variables = keras_internals.collect(trained, metrics=False)
    variables.params.leaves(state.params, "params")
    with explained({"opt_state": state.opt_state}):
        opt_state = _slots(state, trained, variables)
    variables.opt_state.leaves(opt_state, "opt_state")
    return {"tx": transformation(trained, variables), "opt_state": opt_state, "apply_fn": KerasApply(trained)}


def _optimizer_of(state: Any, model: Any) -> Any:
    """The Keras optimizer to continue with; None for the compiled one."""
    if isinstance(getattr(model, "optimizer", None), keras.optimizers.Optimizer):
        return None
    tx = without_overwriting(state.tx)
    if isinstance(tx, Native):
        return tx.optimizer
    if isinstance(tx, Adapter):
        own = {id(v): v for v in keras_internals.built_for(tx.optimizer) or model.trainable_variables}
        return keras_internals.rebuilt(tx.optimizer, own)
    return OptaxOptimizer(tx)


def _slots(state: Any, trained: Any, variables: ModelVariables) -> Any:
    if isinstance(without_overwriting(state.tx), (KerasTransformation, Adapter)):
        return state.opt_state
    inner = getattr(trained.optimizer, "inner_optimizer", trained.optimizer)
    if isinstance(inner, OptaxOptimizer):
        return to_slots(inner, variables.opt_state, state.opt_state, variables.params, state.step)
    opt_state, label = opt_state_from_optax(
        trained.optimizer, state.opt_state, state.params, state.step, model=trained, label=True
    )
    if not label.exact:
        log.warning(
            "%s continues with a different rule than optax.%s: %s",
            printable(trained.optimizer.name),
            label.stock,
            label.why,
        )
    return opt_state


def optax_state(state: Any, like: Any) -> Any:
    """The state of optax, of the structure of `like`, for that of a Keras optimizer that `to_keras` chose."""
    inner = getattr(state.tx.optimizer, "inner_optimizer", state.tx.optimizer)
    if not isinstance(inner, OptaxOptimizer):
        return state.to_optax().opt_state
    variables = keras_internals.collect(state.apply_fn.model, metrics=False)
    return from_slots(inner, variables.opt_state, state.opt_state, variables.params, like)
