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


def code_in_configs() -> Any:
    """Context in which Keras may run code from configs: from pickles alone, which are code themselves."""
    return SafeModeScope(False)


def deserialized(config: Any, where: Any) -> Any:
    """Deserializes a config.

    Args:
        config: the result of `keras.saving.serialize_keras_object` from a file; it is not changed.
        where: its owner, for messages.

    Raises:
        CheckpointError: if it names something that is not allowed.
        Exception: any error of Keras.
    """
    require_safe(config, where)
    with safe_mode():
        # a copy: `from_config` may change its argument, as in keras.layers.Wrapper
        return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
