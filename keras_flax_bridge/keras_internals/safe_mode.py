"""Keras's safe mode, whatever the caller has set."""

from __future__ import annotations

import copy
from typing import Any

import keras

# Keras has no public name for it: its own argument gives way to `keras.config.enable_unsafe_deserialization`
from keras.src.saving.serialization_lib import SafeModeScope

from keras_flax_bridge.tree.untrusted import require_safe


def safe_mode() -> Any:
    """Context in which Keras runs no code from configs."""
    return SafeModeScope(True)


def deserialized(config: Any, where: Any) -> Any:
    """Deserializes a config.

    Args:
        config: what `keras.saving.serialize_keras_object` gave, out of a file; it stays as it is.
        where: what it is of, for messages.

    Raises:
        CheckpointError: if it names something that is not allowed.
        Exception: any error of Keras.
    """
    require_safe(config, where)
    with safe_mode():
        # a copy: `from_config` may change what it is given, as that of keras.layers.Wrapper does
        return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
