"""verify: reads every leaf of a checkpoint, compares its checksum, and names those that are damaged."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge import checkpoint
from keras_flax_bridge._contents import existing
from keras_flax_bridge._progress import working
from keras_flax_bridge.cli import arguments, output


def add_arguments(parser: Any) -> None:
    """Says what the command takes."""
    parser.add_argument("path", metavar="PATH", help="a checkpoint, or a root folder of steps")
    arguments.add_step(parser)
    arguments.add_json(parser)


def run(options: Any) -> int:
    """Runs the command."""
    with working(f"reading {options.path}"):
        report = checkpoint.verify(existing(options.path), step=options.step)
    if options.json:
        output.show_json(
            {"path": str(report.path), "ok": report.ok, "leaves": report.leaves}
            | {"damaged": report.damaged, "unchecked": list(report.unchecked)}
        )
    else:
        output.show(str(report))
    return 0 if report.ok else 1
