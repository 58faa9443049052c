"""Arguments shared by several commands."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from keras_flax_bridge.checkpoint import keras_files, orbax_io
from keras_flax_bridge.checkpoint.readers import Contents, opened
from keras_flax_bridge.errors import StructureMismatchError, said

ANY = "a checkpoint or a root folder of steps, of any Orbax code; a .keras, .weights.h5 or .safetensors file"


def add_json(parser: Any) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def add_step(parser: Any) -> None:
    """--step."""
    parser.add_argument(
        "--step", type=int, metavar="N", help="the step of a root folder; the newest by default"
    )


def add_model(parser: Any) -> None:
    """--model, and --import."""
    parser.add_argument(
        "--model", metavar="FILE.keras", help="the model of the leaves, if the file has no model config"
    )
    add_import(parser)


def add_import(parser: Any) -> None:
    """--import."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a Python module first, one that registers your classes with Keras",
    )


def do_imports(options: Any) -> None:
    """Imports the module of --import.

    Raises:
        StructureMismatchError: if there is no such module.
    """
    for name in options.imports:
        import_from_here(name, "--import")


def import_from_here(name: str, where: str) -> Any:
    """A module, found as ``python -m`` finds it.

    Raises:
        StructureMismatchError: if there is none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise StructureMismatchError(
            where,
            got=f"{name!r} ({said(error)})",
            expected="a Python module that can be imported from here",
            fix="Run the command in the folder that contains it, or install it.",
        ) from error


def given_model(options: Any) -> Any:
    """The model of --model; None without it."""
    return None if options.model is None else keras_files.load_model(orbax_io.absolute(options.model))


def opened_with(path: str, options: Any, *, step: int | None = None) -> Contents:
    """Opens a path, with the model of --model if the file has no model config."""
    found = opened(path, step=step)
    model = given_model(options) if found.unnamed else None
    return found if model is None else opened(path, step=step, model=model)
