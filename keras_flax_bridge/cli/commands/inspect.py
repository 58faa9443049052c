"""inspect: lists the leaves of a checkpoint or file: paths, kinds, shapes, dtypes, bytes; reads no array."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.cli import arguments, output


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("path", metavar="PATH", help=arguments.ANY)
    arguments.add_step(parser)
    arguments.add_json(parser)
    arguments.add_model(parser)


def run(options: Any) -> int:
    """Runs the command."""
    arguments.do_imports(options)
    contents = arguments.opened_with(options.path, options, step=options.step)
    report = contents.report()
    if options.json:
        said = report.to_json()
        del said["title"]
        output.show_json({"path": str(contents.path), "kind": contents.kind, **said})
    else:
        output.show(report)
    return 0
