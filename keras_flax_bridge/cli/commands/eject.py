"""eject: writes a Keras model as the source of a native Flax module, and its weights as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.checks import require
from keras_flax_bridge.checkpoint.progress import working
from keras_flax_bridge.cli import arguments, output
from keras_flax_bridge.cli.files import ejecting
from keras_flax_bridge.errors import printable
from keras_flax_bridge.state.report import counted


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", metavar="MODEL.keras", help="a Keras model")
    parser.add_argument("source", metavar="OUT.py", help="the file that is written")
    parser.add_argument("--class-name", default="Model", help="the name of the module's class")
    said = "the checkpoint of its weights; OUT_weights if not given"
    parser.add_argument("--weights", metavar="DIR", help=said)
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    arguments.add_import(parser)


def run(options: Any) -> int:
    """Runs the command."""
    arguments.do_imports(options)
    source = orbax_io.absolute(options.source)
    weights = orbax_io.absolute(options.weights or source.with_name(f"{source.stem}_weights"))
    fix = "OUT.py is the source; pass the path of the weights as --weights."
    require(source.suffix == ".py", str(source), "this name", "one that ends in .py", fix)
    file = orbax_io.absolute(options.model)
    with working(f"converting {options.model}"):
        done = ejecting.eject(file, source, weights, options.class_name, force=options.force)
    output.show(_told(done, source, weights))
    return 0


def _told(done: Any, source: Path, weights: Path) -> str:
    dropped = [printable(f"left out: {what}") for what in done.report.dropped]
    head = f"{source}: class {done.class_name}; outputs differ from Keras's by {done.report.checked:.1e}"
    saved = f"{weights}: {counted(done.leaves, 'leaf')}, read back the same"
    return "\n".join(
        [
            printable(head),
            printable(saved),
            *dropped,
            "",
            _USE.format(printable(source.stem), done.class_name, str(weights), str(weights / "state")),
        ]
    )


_USE = """with this package:
  from {0} import {1}
  module = keras_flax_bridge.restore({2!r}, {1}(rngs=nnx.Rngs(0)))

with Flax and Orbax alone:
  from {0} import {1}
  module = {1}(rngs=nnx.Rngs(0))
  state = nnx.state(module, nnx.Not(nnx.RngState))
  stored = orbax.checkpoint.StandardCheckpointer().restore({3!r})
  nnx.replace_by_pure_dict(state, stored["params"])
  nnx.update(module, state)

module.eval() before inference, module.train() before training."""
