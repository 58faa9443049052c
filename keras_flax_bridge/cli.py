"""The command line: ``keras-flax-bridge``, or ``python -m keras_flax_bridge``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

from keras_flax_bridge import _keras_files, _plan
from keras_flax_bridge.errors import BridgeError, StructureMismatchError

_AXES = ("data", "model", "expert", "stage")  # names of a mesh's axes, in the order of its sizes
_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "lion", "muon")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: what was typed after the program's name; None for that of this process.

    Returns:
        The exit code: 0 fine, 2 wrong use.

    Raises:
        SystemExit: with code 2, if the command line is wrong.
    """
    parser = argparse.ArgumentParser(prog="keras-flax-bridge", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_plan(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except BridgeError as error:
        if options.debug:
            raise
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="bytes on each device of a mesh, under some layouts; nothing is allocated",
        description="Bytes on each device of a mesh for weights, slots and averages, under some layouts, and "
        "the size of a checkpoint. Nothing is allocated.",
    )
    plan.add_argument("model", metavar="MODEL", help="a .keras file, or module:function that builds a model")
    plan.add_argument("--mesh", default="8", help="its sizes, such as 8x4: axes are called data, model, ...")
    plan.add_argument("--optimizer", default="adamw", choices=_OPTIMIZERS)
    plan.add_argument("--ema", action="store_true", help="with an average of the weights")
    plan.add_argument("--bandwidth", type=float, default=1.0, help="of the storage, in GB a second")
    plan.set_defaults(run=_run_plan)


def _run_plan(options: Any) -> int:
    axes = _axes(options.mesh)
    state = _plan.abstract(_builder(options.model), _optimizer(options.optimizer, options.ema))
    table = Table("layout", *_plan.KINDS, "together", title=f"GB on each device of {axes}")
    found = _plan.plans(state, axes)
    for plan in found:
        sizes = [plan.per_device[kind] for kind in _plan.KINDS]
        table.add_row(plan.layout, *(f"{size / 1e9:.3f}" for size in (*sizes, sum(sizes))))
    size, console = found[0].checkpoint / 1e9, Console()
    console.print(table)
    seconds = size / options.bandwidth
    console.print(
        f"a checkpoint: {size:.1f} GB, {seconds:.0f} s at {options.bandwidth} GB/s", highlight=False
    )
    return 0


def _axes(mesh: str) -> dict[str, int]:
    sizes = mesh.lower().split("x")
    if not all(size.isdigit() and int(size) for size in sizes) or len(sizes) > len(_AXES):
        raise StructureMismatchError(
            "--mesh", got=repr(mesh), expected="sizes of one to four axes", fix="Such as 8, or 8x4."
        )
    return dict(zip(_AXES, map(int, sizes), strict=False))


def _optimizer(name: str, ema: bool) -> Any:
    if name == "momentum":
        return keras.optimizers.SGD(momentum=0.9, use_ema=ema)
    return keras.optimizers.get({"class_name": name, "config": {"use_ema": ema}})


def _builder(model: str) -> Callable[[], Any]:
    """What builds the model: nothing is built yet."""
    if model.endswith(".keras"):
        loaded = _keras_files.load_model(Path(model))
        return lambda: loaded.__class__.from_config(loaded.get_config())
    module, _, function = model.partition(":")
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise StructureMismatchError(
            "MODEL",
            got=f"{model!r} ({error})",
            expected="a .keras file, or module:function",
            fix="Give a function without arguments that builds a model, such as my_models:build.",
        ) from error
