"""Start-up: selects the JAX backend.

The command line must report problems even where Keras can't be imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from keras_flax_bridge.errors import BackendError
from keras_flax_bridge.startup.backend import ensure_jax

_NAME, _MODULE = "keras-flax-bridge", "keras_flax_bridge"


def begin() -> None:
    """Chooses Keras's backend.

    On the command line an error is one line, and the exit code 2. The command ``doctor`` runs here,
    before anything else is imported, and ends the process.

    Raises:
        BackendError: if Keras is imported, or set to be imported, on another backend.
    """
    if not is_command():
        return ensure_jax()
    from keras_flax_bridge.startup import doctor  # the command line alone needs it

    if _command() == "doctor" and not {"-h", "--help"} & set(sys.argv):
        sys.exit(doctor.run(as_json="--json" in sys.argv))
    try:
        ensure_jax()
    except BackendError as error:
        if "--debug" in sys.argv:
            raise
        doctor.say(str(error), sys.stderr, red=True)
        sys.exit(2)


def is_command() -> bool:
    """Whether this process was started as the command line, by its name or with ``python -m``."""
    typed = sys.orig_argv
    by_module = "-m" in typed[:-1] and typed[typed.index("-m") + 1] == _MODULE
    return by_module or Path(sys.argv[0] if sys.argv else "").stem == _NAME


def _command() -> str | None:
    """The first argument that is not an option."""
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
