"""The base of an optimizer that updates all variables at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras


class WholeTreeOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer whose rule sees all gradients at once; clipping, decay and so on come before it.

    A subclass defines `_update_all`.
    """

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        # the public `update_step` sees one variable; this is what calls it for each
        by_index = {self._get_variable_index(v): g for v, g in zip(trainable_variables, grads, strict=True)}
        self._update_all(by_index, keras.ops.convert_to_tensor(learning_rate))

    def _update_all(self, gradients: Mapping[int, Any], learning_rate: Any) -> None:
        """Updates the variables that have a gradient, by their place in `trained`."""
        raise NotImplementedError

    @property
    def trained(self) -> list[Any]:
        """The variables it was built for, in order."""
        return list(self._trainable_variables)
