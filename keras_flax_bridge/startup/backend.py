"""Chooses Keras's JAX backend before anything imports Keras."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from keras_flax_bridge.errors import BackendError


def ensure_jax() -> None:
    """Sets ``KERAS_BACKEND=jax`` if no backend is chosen, and refuses any other choice.

    Raises:
        BackendError: if Keras is imported, or set to be imported, on another backend.
    """
    source, backend = _choice()
    if backend is None:
        os.environ["KERAS_BACKEND"] = "jax"
    elif backend != "jax":
        raise BackendError(
            source,
            got=f"backend {backend!r}",
            expected="backend 'jax'",
            fix="Set the environment variable KERAS_BACKEND=jax before the first import of keras.",
        )


def _choice() -> tuple[str, str | None]:
    """Where the backend is configured, and which it is, in the order in which Keras looks."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "backend"):
        return "the imported keras", keras.backend.backend()
    if os.environ.get("KERAS_BACKEND"):
        return "KERAS_BACKEND", os.environ["KERAS_BACKEND"]
    return str(config_path()), _backend_of(config_path())


def config_path() -> Path:
    """The file in which Keras looks for its settings."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"


# Keras writes this file at its first import with any backend: it is not a user's choice.
WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


def _backend_of(path: Path) -> str | None:
    """The backend that a user's ``keras.json`` asks for."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):  # no file, or one that Keras ignores as well
        return None
    if not isinstance(config, dict) or config == WRITTEN_BY_KERAS:
        return None
    return config.get("backend")
