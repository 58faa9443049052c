"""convert: writes one kind of file as another, reads it back and compares every bit."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.cli import arguments, output
from keras_flax_bridge.cli.files import converting


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", metavar="SRC", help=arguments.ANY)
    parser.add_argument(
        "target",
        metavar="DST",
        help="the target; its suffix selects the format; without one it is a checkpoint",
    )
    said = "the format; flax is a plain tree, for Orbax's StandardCheckpointer"
    parser.add_argument("--to", choices=converting.KINDS, help=said)
    said = "the layout of a checkpoint on disk"
    parser.add_argument("--layout", choices=("tree", "packed"), default="tree", help=said)
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    arguments.add_step(parser)
    arguments.add_model(parser)


def run(options: Any) -> int:
    """Runs the command."""
    arguments.do_imports(options)
    target = orbax_io.absolute(options.target)
    kind = converting.kind_for(target, options.to)
    report = converting.convert(
        arguments.opened_with(options.source, options, step=options.step),
        target,
        kind,
        model_file=options.model,
        layout=options.layout,
        force=options.force,
    )
    output.show(str(report))
    return 0
