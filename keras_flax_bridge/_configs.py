"""Configs of models, as they lie beside the weights in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


def model_config(model: Any, slots: Sequence[Any] | None) -> dict[str, Any]:
    """What `model_from_config` needs to build the model again, as plain JSON types.

    Args:
        model: any model.
        slots: values of the optimizer's variables, whose own may have moved; None leaves out how
            the model was compiled.

    Raises:
        NotImplementedError: and others, whatever the model's own ``get_config`` raises.
    """
    if slots is None:
        return {**keras.saving.serialize_keras_object(model), "compile_config": None}
    values = zip(model.optimizer.variables, slots, strict=True)
    with keras.StatelessScope(list(values)):  # get_config reads the learning rate
        return keras.saving.serialize_keras_object(model)


def model_from_config(config: dict[str, Any]) -> Any:
    """Builds a model from its config; nothing in it is run as code.

    Raises:
        ValueError: if the config asks for code, such as a Lambda layer.
    """
    return keras.saving.deserialize_keras_object(config, safe_mode=True)
