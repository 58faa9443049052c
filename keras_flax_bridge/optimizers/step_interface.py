"""Keras optimizers with optax's interface, and optax with the interface of Keras's train step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError, UnsupportedOptimizerError, said
from keras_flax_bridge.keras_internals import Collection, ModelVariables
from keras_flax_bridge.optimizers.overwrites import applied, overwriting
from keras_flax_bridge.optimizers.overwrites import is_exact as is_exact
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import SharedOnCopy
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, nest_paths


def training_model(model: Any, *, loss: Any = None, optimizer: Any = None, metrics: Any = None) -> Any:
    """A compiled model whose own ``train_step`` trains it with the given parts.

    Args:
        model: a `keras.Model`, compiled or not.
        loss: as in ``compile``; None for the model's own.
        optimizer: a Keras optimizer, its name, or an optax transformation; None for the model's own.
        metrics: as in ``compile``; None for the model's own.

    Raises:
        StructureMismatchError: if `model` is not a `keras.Model`.
        NotBuiltError: if the model was never compiled and no optimizer is given.
    """
    require_model(model)
    if not is_optax(optimizer):
        return keras_internals.trainer(model, loss=loss, optimizer=optimizer, metrics=metrics)
    twin = keras_internals.trainer(model, loss=loss, optimizer="sgd", metrics=metrics)
    twin.optimizer = OptaxInKeras(optimizer, twin)
    return twin


def require_model(model: Any) -> None:
    """Checks that an object is a Keras model.

    Raises:
        StructureMismatchError: with the fix for other objects.
    """
    if not isinstance(model, keras.Model):
        raise StructureMismatchError(
            "model",
            got=f"a {type(model).__name__}",
            expected="a keras.Model",
            fix="Pass a keras.Model: a layer goes into keras.Sequential([layer]); of several models in one "
            "state each has its own steps, run on state.part(name).",
        )


def is_optax(optimizer: Any) -> bool:
    """Whether an object is an optax transformation, by optax's own interface."""
    return hasattr(optimizer, "init") and hasattr(optimizer, "update")


class OptaxInKeras:
    """The optimizer interface of Keras's train step for an optax transformation."""

    built = True
    variables = ()

    def __init__(self, tx: optax.GradientTransformation, model: Any):
        self.name = "optax"
        self.tx = tx
        self._model = model

    def scale_loss(self, loss: Any) -> Any:
        """The scaled loss, whose gradients are computed."""
        return loss

    def stateless_apply(
        self, optimizer_variables: list[Any], grads: list[Any], trainable_variables: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """One update; `optimizer_variables` are the leaves of optax's state."""
        params, _ = keras_internals.collect_layer(self._model)
        slots = OptaxSlots(self.tx, params)
        values = params.tree(trainable_variables)
        state = slots.tree(optimizer_variables)
        with taking_no_extra_arguments(self.tx):
            values, state = applied(overwriting(self.tx, params), params.tree(grads), state, values)
        return params.leaves(values, "params"), jax.tree.leaves(state)


@contextlib.contextmanager
def taking_no_extra_arguments(tx: Any) -> Iterator[None]:
    """Explains the error of an optax transformation that needs more than gradients, state and parameters.

    Raises:
        UnsupportedOptimizerError: in place of Python's own error.
    """
    try:
        yield
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise UnsupportedOptimizerError(
            "optimizer",
            got=f"a transformation whose update takes more than gradients, state and params ({said(error)})",
            expected="one that doesn't",
            fix="Call its update in a step of your own, on state.params and state.opt_state.",
        ) from error


class OptaxSlots:
    """Optax's state in the role of a Keras optimizer's `Collection` of slots."""

    def __init__(self, tx: optax.GradientTransformation, params: Collection):
        self._like = jax.eval_shape(overwriting(tx, params).init, nest_paths(params.specs()))

    def order(self, flat: Flat, where: str) -> list[Path]:
        """The paths of the leaves in optax's order, after checking that they are this transformation's.

        Raises:
            StructureMismatchError: naming all leaves that differ.
        """
        like = flatten_tree(self._like)
        difference = diff_trees(flat, like)
        if difference:
            raise difference.error(where, "It is the state of a different optimizer than the step's.")
        return list(like)

    def tree(self, values: list[Any]) -> Any:
        """A tree like the state's, of these leaves."""
        return jax.tree.unflatten(jax.tree.structure(self._like), values)


def training_variables(trained: Any) -> tuple[Any, ...]:
    """Params, non-trainable state, slots, metrics and compiled objects of a `trainee`, each a collection."""
    variables = keras_internals.collect(trained)
    if isinstance(trained.optimizer, OptaxInKeras):
        slots = OptaxSlots(trained.optimizer.tx, variables.params)
        return (*variables[:2], slots, *variables[3:])
    return variables


class KerasTransformation(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """A Keras optimizer as an optax transformation whose `apply` is exact.

    `update` returns differences, as optax has it, and adding one to a parameter rounds; `apply`
    returns the new parameters themselves.
    """

    optimizer: Any
    _variables: ModelVariables
    _key: tuple[int, ...]

    @classmethod
    def of(cls, optimizer: Any, variables: ModelVariables) -> KerasTransformation:
        """A Keras optimizer as a transformation of its own variables."""

        def init(params: Any) -> Any:
            values = variables.params.leaves(params, "params")
            owners = {entry.path: entry.variable for entry in variables.params}
            fresh = keras_internals.twin_of(optimizer, dict(zip(owners, values, strict=True)), owners.get)
            return variables.opt_state.tree([variable.value for variable in fresh.optimizer.variables])

        def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
            new, state = self.apply(grads, state, params)
            return jax.tree.map(jnp.subtract, new, params), state

        self: KerasTransformation = cls(init, update)
        self.optimizer = optimizer
        self._variables = variables
        self._key = (id(optimizer), *(id(entry.variable) for entry in variables.params))
        return self

    def __eq__(self, other: object) -> bool:  # for jit: equal states share one compilation
        return isinstance(other, KerasTransformation) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def apply(self, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        """New parameters and slots, by Keras's own rule.

        The gradients are those of the unscaled loss: if the optimizer scales the loss, they are scaled
        here, because Keras's rule divides by that scale; not those that overwrite their variable.
        """
        owned, slots = self._variables.params, self._variables.opt_state
        slot_values = slots.leaves(opt_state, "opt_state")
        gradients = [
            g if keras_internals.is_overwritten(entry.variable) else self._scaled(g, slot_values)
            for entry, g in zip(owned, owned.leaves(grads, "grads"), strict=True)
        ]
        new, new_slots = self.optimizer.stateless_apply(
            slot_values, gradients, owned.leaves(params, "params")
        )
        return owned.tree(new), slots.tree(new_slots)

    def _scaled(self, gradient: Any, slot_values: list[Any]) -> Any:
        mapping = [(e.variable, v) for e, v in zip(self._variables.opt_state, slot_values, strict=True)]
        with keras.StatelessScope(mapping):
            scaled = self.optimizer.scale_loss(gradient)
        return scaled if scaled is gradient else scaled.astype(gradient.dtype)


def transformation(trained: Any, variables: ModelVariables) -> Any:
    """The optax view of the optimizer of a `trainee`."""
    if isinstance(trained.optimizer, OptaxInKeras):
        return overwriting(trained.optimizer.tx, variables.params)
    return KerasTransformation.of(trained.optimizer, variables)
