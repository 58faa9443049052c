"""diff: what differs between two checkpoints or files of any kind: leaves, shapes, dtypes, values."""

from __future__ import annotations

from typing import Any

from keras_flax_bridge.checkpoint.progress import working
from keras_flax_bridge.checkpoint.readers import same_model
from keras_flax_bridge.cli import arguments, output
from keras_flax_bridge.cli.files.differing import difference


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("a", metavar="A", help=arguments.ANY)
    parser.add_argument("b", metavar="B", help="another")
    said = "compare values too: the largest absolute difference of each leaf"
    parser.add_argument("--values", action="store_true", help=said)
    arguments.add_json(parser)
    arguments.add_model(parser)


def run(options: Any) -> int:
    """Runs the command."""
    arguments.do_imports(options)
    with working(f"comparing {options.a} with {options.b}"):
        a, b = same_model(*(arguments.opened_with(path, options) for path in (options.a, options.b)))
        found = difference(a, b, values=options.values)
    if options.json:
        output.show_json(found.to_json())
    else:
        output.show(str(found))
    return 0 if found.ok else 1
