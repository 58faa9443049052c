"""doctor: versions, backend, devices and settings; conflicts, and how to fix them.

From a shell it runs before the rest of the package is imported: see `startup.begin`.
"""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.cli import arguments
from keras_flax_bridge.startup import doctor


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    arguments.add_json(parser)


def run(options: Any) -> int:
    """Runs the command."""
    return doctor.run(as_json=options.json)
