"""verify: compares every leaf with its checksum, and names those that are damaged or have none.

The exit code is 0 only if every leaf was compared and none is damaged.
"""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.checkpoint.progress import working
from keras_flax_bridge.checkpoint.readers import existing
from keras_flax_bridge.checkpoint.verifying import verify
from keras_flax_bridge.cli import arguments, output


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("path", metavar="PATH", help=arguments.ANY)
    arguments.add_step(parser)
    arguments.add_json(parser)


def run(options: Any) -> int:
    """Runs the command."""
    with working(f"reading {options.path}"):
        report = verify(existing(options.path), step=options.step)
    if options.json:
        output.show_json(report.to_json())
    else:
        output.show(str(report))
    return 0 if report.ok else 1
