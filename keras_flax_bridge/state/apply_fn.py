"""`apply_fn` of a state: a Keras model as Flax code calls a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals.call import (
    method_of,
    require_known,
    require_variables,
    stateless,
    wanted_collections,
)


class KerasApply:
    """``apply_fn(variables, x, ...)`` of a Keras model; pure, and equal for one and the same model."""

    def __init__(self, model: Any):
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KerasApply) and self.model is other.model

    def __hash__(self) -> int:
        return hash((KerasApply, id(self.model)))

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasApply:
        return self  # a copy of a state calls the same model

    def __repr__(self) -> str:
        return f"apply_fn of {self.model.name!r}"

    def __call__(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        mutable: bool | str | Sequence[str] = False,
        rngs: Any = None,
        method: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the model, or a method of it, on `variables`.

        Args:
            variables: ``{"params": ..., "non_trainable": ...}``. ``non_trainable`` may be left out
                where the model has no such state, or has only seeds that this call doesn't use.
            *args: arguments of the model's call, or of the method.
            mutable: the collections to return updated: ``non_trainable``, and ``losses`` (a list of
                scalars from ``add_loss`` and regularizers); True for both.
            rngs: a JAX key, or ``{"dropout": key}``, from which all seeds of this call derive.
            method: as in Linen: the name of a method, a method, or a function of the model and the
                arguments; None calls the model.
            **kwargs: passed to the model; ``training`` only where it takes it. A method gets all of them.

        Returns:
            The outputs, or ``(outputs, updates)`` if `mutable` names any.

        Raises:
            StructureMismatchError: if `variables` don't match the model, there is no such method or
                argument, or the code reads or assigns a variable that is not among `variables`, which names
                it, its owner and the line.
            OwnershipError: if a leaf was donated to a step.
        """
        require_variables(variables)
        function = None if method is None else method_of(self.model, method, kwargs)
        if function is None:
            require_known(kwargs, self.model, "apply_fn")
            if not keras_internals.takes_training(self.model):  # as Keras's own step does
                kwargs.pop("training", None)
        wanted = wanted_collections(mutable)
        state = keras_internals.collect_layer(self.model)
        with keras_internals.Traced((), (), "call of apply_fn").watching():
            outputs, (_, after), losses = stateless(
                self.model, state, variables, args, kwargs, rngs, function
            )
        updates = {"non_trainable": after, "losses": losses}
        return (outputs, {name: updates[name] for name in wanted}) if wanted else outputs
