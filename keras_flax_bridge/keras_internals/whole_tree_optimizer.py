"""The base of an optimizer that updates all variables at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


class WholeTreeOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer whose update rule gets all gradients at once, after clipping and weight decay.

    A subclass defines `_update_all`.
    """

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        # the public `update_step` gets one variable; this method calls it for each variable
        by_index = {self._get_variable_index(v): g for v, g in zip(trainable_variables, grads, strict=True)}
        self._update_all(by_index, keras.ops.convert_to_tensor(learning_rate))

    def _update_all(self, gradients: Mapping[int, Any], learning_rate: Any) -> None:
        """Updates variables from gradients by index in `optimized_variables`."""
        raise NotImplementedError

    @property
    def optimized_variables(self) -> list[Any]:
        """The variables that the optimizer was built for, in order."""
        return list(self._trainable_variables)
